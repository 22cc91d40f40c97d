//! Every finish reason, and requests that fail before the first token.

use crate::support::{Output, TestRuntime, ban_eos, greedy, infill, run_test, text};
use souffleur::actors::{Error, FimOrder, FinishReason, Message, Prompt, Request, Role, Sampling};
use souffleur::models;

const PROMPT: &str = "def mean(values):\n    \"\"\"The mean of some values.\"\"\"\n    total = 0\n";

#[test]
fn text_ends_before_the_stop_sequence_wherever_token_boundaries_fall() {
    run_test(async {
        let runtime = TestRuntime::new();
        let info = runtime.model_info().await;
        let sampling = Sampling { logit_bias: ban_eos(&info), ..Sampling::default() };
        let request = Request { sampling, ..greedy(text(PROMPT), 40) };
        let whole = runtime.run(request.clone()).await;
        let mut boundaries = Vec::new();
        for count in 1..=whole.tokens.len() {
            boundaries.push(runtime.detokenize(&whole.ids()[..count]).await.len());
        }
        let (mut across, mut tried) = (0, 0);
        for start in (1..whole.text.len()).step_by(5) {
            let end = (start + 2 + start % 5).min(whole.text.len());
            let Some(stop) = whole.text.get(start..end).filter(|stop| !stop.is_empty()) else { continue };
            let at = whole.text.find(stop).expect("taken from this text");
            let output = runtime.run(Request { stop: vec!["\u{1}never".into(), stop.into()], ..request.clone() }).await;
            assert_eq!((output.text.as_str(), output.reason()), (&whole.text[..at], FinishReason::Stop), "stop {stop:?}");
            // The last token is the one that completes the sequence.
            let last = boundaries.iter().position(|boundary| *boundary >= at + stop.len()).expect("the text contains it");
            assert_eq!(output.tokens[..], whole.tokens[..=last], "stop {stop:?}");
            assert_eq!(output.usage().completion_tokens as usize, last + 1);
            across += usize::from(boundaries.iter().any(|boundary| (at + 1..at + stop.len()).contains(boundary)));
            tried += 1;
        }
        assert!(across >= 3 && tried >= 8, "only {across} of {tried} stop sequences cross a token boundary");
        // A prefix of a stop sequence is delivered if the text ends before the rest.
        let tail = &whole.text[whole.text.len() - 1..];
        let output = runtime.run(Request { stop: vec![format!("{tail}\u{1}")], ..request }).await;
        assert_eq!((output.text.as_str(), output.reason()), (whole.text.as_str(), FinishReason::Length));
    });
}

/// A character of two tokens, and a request that generates only these two tokens in turn.
async fn two_token_character(runtime: &TestRuntime) -> (char, Request) {
    for character in ['é', 'ß', 'λ', '→', '☃', 'ж', '日', '本', 'ø', '\u{10d}', '\u{1F980}', '\u{2713}'] {
        let [first, second] = runtime.tokenize(&character.to_string()).await[..] else { continue };
        let prompt = format!("let s = \"{character}");
        if first == second || runtime.tokenize(&prompt).await.last() != Some(&second) {
            continue;
        }
        let bias = vec![(first, 1000.0), (second, 1000.0)];
        let sampling = Sampling { logit_bias: bias, presence_penalty: 500.0, repetition_window: 1, ..Sampling::default() };
        return (character, Request { sampling, ..greedy(text(prompt), 9) });
    }
    panic!("none of these characters takes two tokens; find one that does in this vocabulary")
}

#[test]
fn multi_token_characters_are_delivered_whole_and_can_be_stop_sequences() {
    run_test(async {
        let runtime = TestRuntime::new();
        let (character, request) = two_token_character(&runtime).await;
        let mut reader = runtime.complete(request.clone()).unwrap();
        let mut output = Output::default();
        for count in 1.. {
            let running = output.read_tokens(&mut reader, count).await;
            assert!(output.text.chars().all(|c| c == character), "half a character in {:?}", output.text);
            if !running {
                break;
            }
        }
        // Nine tokens are four and a half characters.
        assert_eq!(output.text.chars().filter(|c| *c == character).count(), 4);
        assert_eq!(output.reason(), FinishReason::Length);

        let stop = vec![character.to_string().repeat(3)];
        let stopped = runtime.run(Request { stop, ..request.clone() }).await;
        assert_eq!((stopped.text.as_str(), stopped.reason(), stopped.tokens.len()), ("", FinishReason::Stop, 6));
        let never = vec![format!("{}x", character.to_string().repeat(2))];
        let held = runtime.run(Request { stop: never, ..request }).await;
        assert_eq!((held.text.as_str(), held.reason()), (output.text.as_str(), FinishReason::Length));
    });
}

#[test]
fn length_and_eos_are_different_finish_reasons() {
    run_test(async {
        let runtime = TestRuntime::new();
        let info = runtime.model_info().await;
        for tokens_max in [1, 2, 7] {
            let output = runtime.run(greedy(text(PROMPT), tokens_max)).await;
            assert_eq!((output.reason(), output.tokens.len()), (FinishReason::Length, tokens_max as usize));
            assert_eq!(output.usage().completion_tokens, tokens_max);
        }
        for (eos, spelled) in &info.eos {
            let sampling = Sampling { logit_bias: vec![(*eos, 1000.0)], ..Sampling::default() };
            let output = runtime.run(Request { sampling, ..greedy(text(PROMPT), 7) }).await;
            assert_eq!((output.reason(), output.text.as_str(), output.ids()), (FinishReason::Eos, "", vec![*eos]), "{spelled}");
        }
    });
}

#[test]
fn generation_ends_exactly_at_the_context_length() {
    run_test(async {
        let runtime = TestRuntime::new();
        let context = runtime.model_info().await.context_length as usize;
        let output = runtime.run(greedy(text(runtime.text_with_tokens(context - 1, 1).await), 5)).await;
        assert_eq!((output.reason(), output.tokens.len()), (FinishReason::Length, 1));
        assert_eq!(output.usage().prompt_tokens as usize, context - 1);

        for beyond in [0, 1, 300] {
            let output = runtime.run(greedy(text(runtime.text_with_tokens(context + beyond, 1).await), 5)).await;
            let expected = models::Error::ContextOverflow { needed: (context + beyond) as u64, limit: context as u64 };
            assert_eq!(output.error(), &Error::Model(expected));
            assert!(output.tokens.is_empty());
        }
        let sampling = Sampling { logit_bias: ban_eos(&runtime.model_info().await), ..Sampling::default() };
        let output = runtime.run(Request { sampling, ..greedy(text(runtime.text_with_tokens(context - 10, 1).await), 50) }).await;
        assert_eq!((output.reason(), output.tokens.len()), (FinishReason::Length, 10));
    });
}

#[test]
fn an_empty_prompt_generates_from_the_start_of_a_text() {
    run_test(async {
        let runtime = TestRuntime::new();
        let order =
            |order| Prompt::Infill { prefix: String::new(), suffix: String::new(), path: None, repository: None, files: vec![], order };
        let empty = Message { role: Role::User, content: String::new() };
        let prompts = [
            text(""),
            infill("", ""),
            order(None),
            order(Some(FimOrder::PrefixSuffixMiddle)),
            Prompt::Chat { messages: vec![], language: None },
            Prompt::Chat { messages: vec![empty], language: None },
        ];
        for prompt in prompts {
            let output = runtime.run(greedy(prompt.clone(), 4)).await;
            assert!(output.usage().prompt_tokens >= 1 && !output.tokens.is_empty(), "{prompt:?}: {output:?}");
        }
    });
}

#[test]
fn an_unknown_model_error_lists_the_known_models() {
    run_test(async {
        let runtime = TestRuntime::new();
        let expected = Error::UnknownModel { name: "nobody".into(), known: vec!["embedded".into()] };
        let request = Request { model: "nobody".into(), ..greedy(text(PROMPT), 4) };
        assert_eq!(runtime.complete(request).err(), Some(expected.clone()));
        assert_eq!(runtime.load("nobody", |_, _| {}).await, Err(expected.clone()));
        assert_eq!(runtime.show("nobody").await, Err(expected));
    });
}
