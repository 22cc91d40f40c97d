//! The prefix cache: only the part after a cached prefix is computed, and the output does not change.

use crate::support::{Output, TestRuntime, common_prefix_len, done, greedy, infill, run_test, text};
use souffleur::actors::{DecoderStatus, FinishReason, Prompt, Request};

const TOKENS: u32 = 12;

fn probe(prompt: &Prompt) -> Request {
    Request { logprobs: Some(5), ..greedy(prompt.clone(), TOKENS) }
}

/// Runs `prompt` with and without a prefix cache. The cache already holds `known`, a prefix or variant of the prompt.
/// Returns the tokens of the prompt and its completion, which the cache holds afterwards.
async fn check(cached: &TestRuntime, uncached: &TestRuntime, prompt: &Prompt, known: &[u32]) -> Vec<u32> {
    let tokens = cached.render(prompt).await.tokens;
    let before = cached.decoder().await;
    let output = cached.run(probe(prompt)).await;
    let after = cached.decoder().await;
    let usage = output.usage();
    let cached = usage.cached_tokens as usize;
    assert_eq!(usage.prompt_tokens as usize, tokens.len());
    let shared = common_prefix_len(known, &tokens);
    assert!(cached + 1 >= shared, "{cached} tokens from the cache, but {shared} are shared");
    assert!(cached < tokens.len(), "the last prompt token must be computed: its logits give the next token");
    assert_only_the_rest_was_computed(&output, &before, &after);

    let expected = uncached.run(probe(prompt)).await;
    assert_eq!(expected.usage().cached_tokens, 0);
    assert_eq!(output.text, expected.text);
    // Includes the log-probabilities, bit for bit.
    assert_eq!(output.tokens, expected.tokens);
    assert!(output.tokens.iter().all(|sampled| sampled.top.len() == 5));
    tokens.into_iter().chain(output.ids()).collect()
}

/// Compares with the decode loop's count of computed rows: a worker that reports cached tokens but computes them fails.
fn assert_only_the_rest_was_computed(output: &Output, before: &DecoderStatus, after: &DecoderStatus) {
    let usage = output.usage();
    let expected = usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens - 1;
    assert_eq!(after.rows - before.rows, u64::from(expected), "{usage:?}");
}

#[test]
fn a_longer_prompt_computes_only_the_added_tokens() {
    run_test(async {
        let (cached, uncached) = (TestRuntime::new(), TestRuntime::without_cache());
        let base = cached.text_with_tokens(300, 1).await;
        let known = check(&cached, &uncached, &text(&base), &[]).await;
        let longer = text(cached.text_with_tokens(320, 1).await);
        let shared = common_prefix_len(&known, &cached.render(&longer).await.tokens);
        assert!(shared > 250, "the prompts share only {shared} tokens");
        check(&cached, &uncached, &longer, &known).await;
        // The same prompt again.
        let known = cached.render(&longer).await.tokens;
        check(&cached, &uncached, &longer, &known).await;
    });
}

#[test]
fn tokens_of_a_cancelled_request_are_cached() {
    run_test(async {
        let (cached, uncached) = (TestRuntime::new(), TestRuntime::without_cache());
        let base = cached.text_with_tokens(200, 2).await;
        let mut known = cached.render(&text(&base)).await.tokens;
        let (mut output, mut reader) = (Output::default(), cached.complete(greedy(text(&base), 400)).unwrap());
        assert!(output.read_tokens(&mut reader, 6).await);
        let (reason, _) = done(&reader.abandon().wait().await);
        assert_eq!(reason, FinishReason::Cancelled);

        // The generated text accepted into the prompt, and more typed after it: the generated tokens are cached as well.
        known.extend(output.ids());
        check(
            &cached,
            &uncached,
            &text(format!("{base}{}\n# and about twenty more tokens that are not in the cache yet 1 2 3\n", output.text)),
            &known,
        )
        .await;
        check(&cached, &uncached, &text(&base), &known).await;
    });
}

#[test]
fn typing_in_an_infill_prefix_computes_only_the_typed_tokens() {
    run_test(async {
        let (cached, uncached) = (TestRuntime::new(), TestRuntime::without_cache());
        let before = format!("{}\ndef total(entries):\n    result = 0\n    for entry in ent", cached.text_with_tokens(120, 3).await);
        let suffix = "\n    return result\n\n\nprint(total([1, 2, 3]))\n";
        let mut known = check(&cached, &uncached, &infill(&before, suffix), &[]).await;
        let mut prefix = before;
        for typed in "ries:\n".chars() {
            prefix.push(typed);
            let prompt = infill(&prefix, suffix);
            let shared = common_prefix_len(&known, &cached.render(&prompt).await.tokens);
            assert!(shared > 100, "with the suffix first, the beginning stays the same, but only {shared} tokens are shared");
            known = check(&cached, &uncached, &prompt, &known).await;
        }
    });
}

#[test]
fn a_diverging_prompt_gets_its_own_entry_and_keeps_the_first_entry_whole() {
    run_test(async {
        let (cached, uncached) = (TestRuntime::new(), TestRuntime::without_cache());
        let base = cached.text_with_tokens(60, 4).await;
        let (long, short) = (format!("{base}\n{}", cached.text_with_tokens(200, 5).await), format!("{base}\nshort = {{}}\n"));
        let known_long = check(&cached, &uncached, &text(&long), &[]).await;
        let known_short = check(&cached, &uncached, &text(&short), &known_long).await;
        assert_eq!(cached.decoder().await.cache_entries, 2);
        check(&cached, &uncached, &text(format!("{long}\nlong[1] = 2\n")), &known_long).await;
        check(&cached, &uncached, &text(format!("{short}short[1] = 2\n")), &known_short).await;
    });
}

#[test]
fn a_prompt_reuses_the_prefix_of_a_running_request() {
    run_test(async {
        let (cached, uncached) = (TestRuntime::new(), TestRuntime::without_cache());
        let base = cached.text_with_tokens(200, 5).await;
        let (first, other) = (greedy(text(&base), 300), probe(&text(format!("{base}\n# the other one\n"))));
        let before = cached.decoder().await;
        let (mut output, mut reader) = (Output::default(), cached.complete(first.clone()).unwrap());
        assert!(output.read_tokens(&mut reader, 4).await);
        let second = cached.run(other.clone()).await;
        let shared = common_prefix_len(&cached.render(&first.prompt).await.tokens, &cached.render(&other.prompt).await.tokens);
        assert!(shared > 180 && second.usage().cached_tokens as usize + 1 >= shared, "{:?}", second.usage());
        assert_eq!(second.tokens, uncached.run(other).await.tokens);
        output.read_to_end(&mut reader).await;
        // The request that was copied from is unchanged.
        assert_eq!(output.tokens, uncached.run(first).await.tokens);
        let rows =
            |output: &Output| u64::from(output.usage().prompt_tokens - output.usage().cached_tokens + output.usage().completion_tokens - 1);
        assert_eq!(cached.decoder().await.rows - before.rows, rows(&output) + rows(&second));
    });
}

#[test]
fn without_a_budget_nothing_is_cached() {
    run_test(async {
        let uncached = TestRuntime::without_cache();
        let prompt = text(uncached.text_with_tokens(60, 6).await);
        for _ in 0..2 {
            assert_eq!(uncached.run(probe(&prompt)).await.usage().cached_tokens, 0);
            let decoder = uncached.decoder().await;
            assert_eq!((decoder.cache_entries, decoder.cache_bytes, decoder.running_bytes), (0, 0, 0));
        }
    });
}
