//! Sampling parameters of a request take effect in the worker.

use crate::support::{Output, TestRuntime, greedy, run_test, text};
use souffleur::actors::{Error, Request, Sampling};
use souffleur::models;

const PROMPT: &str = "class Stack:\n    def __init__(self):\n";

async fn sampled(runtime: &TestRuntime, sampling: Sampling) -> Output {
    runtime.run(Request { sampling, ..greedy(text(PROMPT), 24) }).await
}

#[test]
fn logit_bias_forces_and_bans_tokens() {
    run_test(async {
        let runtime = TestRuntime::new();
        let likeliest = sampled(&runtime, Sampling::default()).await.ids()[0];
        let bias = |token, bias| Sampling { logit_bias: vec![(token, bias)], ..Sampling::default() };
        let without = sampled(&runtime, bias(likeliest, -100.0)).await;
        assert!(!without.ids().contains(&likeliest));

        let unlikely = runtime.tokenize("zebra").await[0];
        let forced = sampled(&runtime, bias(unlikely, 100.0)).await;
        assert!(forced.tokens.len() == 24 && forced.ids().iter().all(|id| *id == unlikely), "{:?}", forced.ids());
    });
}

#[test]
fn logit_bias_beyond_the_vocabulary_is_refused() {
    run_test(async {
        let runtime = TestRuntime::new();
        let vocabulary = runtime.model_info().await.vocab_size;
        for token in [vocabulary, u32::MAX] {
            let output = sampled(&runtime, Sampling { logit_bias: vec![(0, 0.0), (token, 1.0)], ..Sampling::default() }).await;
            let Error::Model(models::Error::Parameter { reason, .. }) = output.error() else { panic!("{output:?}") };
            assert!(reason.contains(&token.to_string()) && reason.contains(&vocabulary.to_string()), "{reason}");
        }
        let last = sampled(&runtime, Sampling { logit_bias: vec![(vocabulary - 1, -1.0)], ..Sampling::default() }).await;
        assert!(!last.tokens.is_empty());
    });
}

#[test]
fn a_seed_reproduces_its_text_and_other_seeds_differ() {
    run_test(async {
        let runtime = TestRuntime::new();
        let seeded = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let first = sampled(&runtime, seeded(7)).await;
        assert_eq!(first.tokens, sampled(&runtime, seeded(7)).await.tokens);
        // Also in another worker process.
        assert_eq!(first.tokens, sampled(&TestRuntime::without_cache(), seeded(7)).await.tokens);
        let mut others = Vec::new();
        for seed in 8..12 {
            others.push(sampled(&runtime, seeded(seed)).await.ids());
        }
        others.push(first.ids());
        others.sort();
        others.dedup();
        assert!(others.len() >= 3, "five seeds gave {} texts", others.len());
    });
}

#[test]
fn filters_that_leave_one_token_are_greedy() {
    run_test(async {
        let runtime = TestRuntime::new();
        let greedy = sampled(&runtime, Sampling::default()).await;
        let hot = Sampling { temperature: 1.5, seed: 3, ..Sampling::default() };
        for sampling in [
            Sampling { top_k: 1, ..hot.clone() },
            Sampling { top_p: 1e-6, ..hot.clone() },
            Sampling { min_p: 1.0, ..hot.clone() },
            Sampling { temperature: 1e-6, ..hot.clone() },
        ] {
            let output = sampled(&runtime, sampling.clone()).await;
            assert_eq!(output.ids(), greedy.ids(), "{sampling:?}");
        }
        assert_ne!(sampled(&runtime, hot).await.ids(), greedy.ids(), "without a filter the result is not greedy");
    });
}

#[test]
fn penalties_cover_prompt_and_completion() {
    run_test(async {
        let runtime = TestRuntime::new();
        // Bans every token that is in the window.
        let strict = Sampling { presence_penalty: 1000.0, repetition_window: 4096, ..Sampling::default() };
        let output = sampled(&runtime, strict).await;
        let mut all = runtime.tokenize(PROMPT).await;
        let prompt = all.len();
        all.extend(output.ids());
        for (index, id) in all.iter().enumerate().skip(prompt) {
            assert!(!all[..index].contains(id), "token {id} is repeated at {index}");
        }
        // A window of 0 turns the penalty off.
        let no_window = Sampling { presence_penalty: 1000.0, repetition_window: 0, ..Sampling::default() };
        assert_eq!(sampled(&runtime, no_window).await.ids(), sampled(&runtime, Sampling::default()).await.ids());
    });
}

#[test]
fn log_probabilities_are_sorted_and_the_first_is_the_greedy_token() {
    run_test(async {
        let runtime = TestRuntime::new();
        let output = runtime.run(Request { logprobs: Some(5), ..greedy(text(PROMPT), 16) }).await;
        for sampled in &output.tokens {
            assert_eq!(sampled.top.len(), 5);
            assert!(sampled.top.is_sorted_by(|a, b| a.1 >= b.1) && sampled.top[0].1 <= 0.0, "{:?}", sampled.top);
            assert_eq!((sampled.token, sampled.logprob), sampled.top[0]);
            assert!(sampled.top.iter().map(|(_, logprob)| logprob.exp()).sum::<f32>() <= 1.0 + 1e-4);
        }
    });
}
