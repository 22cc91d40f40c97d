//! A prompt that begins as an earlier one: only the rest is computed, and nothing of the answer changes.

use crate::support::{House, Told, ask, common, done, hole, text, within};
use souffleur::actors::{DecoderStatus, FinishReason, Prompt, Request};

const ANSWER: u32 = 12;

fn probe(prompt: &Prompt) -> Request {
    Request { logprobs: Some(5), ..ask(prompt.clone(), ANSWER) }
}

/// Asks a warm house, which has computed `known`, and a cold one. Returns what the warm one knows of the text by then.
async fn check(warm: &House, cold: &House, prompt: &Prompt, known: &[u32]) -> Vec<u32> {
    let tokens = warm.render(prompt).await.tokens;
    let before = warm.decoder().await;
    let told = warm.run(probe(prompt)).await;
    let after = warm.decoder().await;
    let usage = told.usage();
    let cached = usage.cached_tokens as usize;
    assert_eq!(usage.prompt_tokens as usize, tokens.len());
    let shared = common(known, &tokens);
    assert!(cached + 1 >= shared, "{cached} tokens were cached where {shared} are shared");
    assert!(cached < tokens.len(), "the last token must be read to choose the next");
    only_the_rest_was_computed(&told, &before, &after);

    let alone = cold.run(probe(prompt)).await;
    assert_eq!(alone.usage().cached_tokens, 0);
    assert_eq!(told.text, alone.text);
    // Log-probabilities to the last bit: a cache that is off by a rounding shows here.
    assert_eq!(told.tokens, alone.tokens);
    assert!(told.tokens.iter().all(|sampled| sampled.top.len() == 5));
    tokens.into_iter().chain(told.ids()).collect()
}

/// The decode loop's own count: a worker that says "cached" and computes all the same is caught here.
fn only_the_rest_was_computed(told: &Told, before: &DecoderStatus, after: &DecoderStatus) {
    let usage = told.usage();
    let expected = usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens - 1;
    assert_eq!(after.rows - before.rows, u64::from(expected), "{usage:?}");
}

#[test]
fn the_same_prompt_with_more_tokens_computes_only_those() {
    within(async {
        let (warm, cold) = (House::warm(), House::cold());
        let base = warm.text_of(300, 1).await;
        let known = check(&warm, &cold, &text(&base), &[]).await;
        let longer = text(warm.text_of(320, 1).await);
        let shared = common(&known, &warm.render(&longer).await.tokens);
        assert!(shared > 250, "the test's own texts share only {shared} tokens");
        check(&warm, &cold, &longer, &known).await;
        // And the same once more.
        let known = warm.render(&longer).await.tokens;
        check(&warm, &cold, &longer, &known).await;
    });
}

#[test]
fn what_a_cancelled_answer_computed_is_used() {
    within(async {
        let (warm, cold) = (House::warm(), House::cold());
        let base = warm.text_of(200, 2).await;
        let mut known = warm.render(&text(&base)).await.tokens;
        let (mut told, mut reader) = (Told::default(), warm.runtime.complete(ask(text(&base), 400)).unwrap());
        assert!(told.reach(&mut reader, 6).await);
        let (reason, _) = done(&reader.abandon().wait().await);
        assert_eq!(reason, FinishReason::Cancelled);

        // The answer so far was taken into the text, and someone typed on: the answer's tokens are known as well.
        known.extend(told.ids());
        check(
            &warm,
            &cold,
            &text(format!("{base}{}\n# and twenty more tokens, of which nobody has heard before 1 2 3\n", told.text)),
            &known,
        )
        .await;
        check(&warm, &cold, &text(&base), &known).await;
    });
}

#[test]
fn typing_on_in_a_hole_computes_what_was_typed() {
    within(async {
        let (warm, cold) = (House::warm(), House::cold());
        let before = format!("{}\ndef total(entries):\n    result = 0\n    for entry in ent", warm.text_of(120, 3).await);
        let suffix = "\n    return result\n\n\nprint(total([1, 2, 3]))\n";
        let mut known = check(&warm, &cold, &hole(&before, suffix), &[]).await;
        let mut prefix = before;
        for typed in "ries:\n".chars() {
            prefix.push(typed);
            let prompt = hole(&prefix, suffix);
            let shared = common(&known, &warm.render(&prompt).await.tokens);
            assert!(shared > 100, "suffix first keeps the beginning, but only {shared} tokens are shared");
            known = check(&warm, &cold, &prompt, &known).await;
        }
    });
}

#[test]
fn a_text_that_parts_early_leaves_the_other_whole() {
    within(async {
        let (warm, cold) = (House::warm(), House::cold());
        let base = warm.text_of(60, 4).await;
        let (long, short) = (format!("{base}\n{}", warm.text_of(200, 5).await), format!("{base}\nshort = {{}}\n"));
        let known_long = check(&warm, &cold, &text(&long), &[]).await;
        let known_short = check(&warm, &cold, &text(&short), &known_long).await;
        assert_eq!(warm.decoder().await.cache_entries, 2);
        check(&warm, &cold, &text(format!("{long}\nlong[1] = 2\n")), &known_long).await;
        check(&warm, &cold, &text(format!("{short}short[1] = 2\n")), &known_short).await;
    });
}

#[test]
fn a_prompt_begins_with_what_a_running_one_has_computed() {
    within(async {
        let (warm, cold) = (House::warm(), House::cold());
        let base = warm.text_of(200, 5).await;
        let (first, beside) = (ask(text(&base), 300), probe(&text(format!("{base}\n# beside it\n"))));
        let before = warm.decoder().await;
        let (mut told, mut reader) = (Told::default(), warm.runtime.complete(first.clone()).unwrap());
        assert!(told.reach(&mut reader, 4).await);
        let second = warm.run(beside.clone()).await;
        let shared = common(&warm.render(&first.prompt).await.tokens, &warm.render(&beside.prompt).await.tokens);
        assert!(shared > 180 && second.usage().cached_tokens as usize + 1 >= shared, "{:?}", second.usage());
        assert_eq!(second.tokens, cold.run(beside).await.tokens);
        told.follow(&mut reader).await;
        // And the one that was copied from does not notice.
        assert_eq!(told.tokens, cold.run(first).await.tokens);
        let rows = |told: &Told| u64::from(told.usage().prompt_tokens - told.usage().cached_tokens + told.usage().completion_tokens - 1);
        assert_eq!(warm.decoder().await.rows - before.rows, rows(&told) + rows(&second));
    });
}

#[test]
fn no_budget_keeps_nothing() {
    within(async {
        let cold = House::cold();
        let prompt = text(cold.text_of(60, 6).await);
        for _ in 0..2 {
            assert_eq!(cold.run(probe(&prompt)).await.usage().cached_tokens, 0);
            let decoder = cold.decoder().await;
            assert_eq!((decoder.cache_entries, decoder.cache_bytes, decoder.running_bytes), (0, 0, 0));
        }
    });
}
