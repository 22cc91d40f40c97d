//! What a request asks of the sampler happens in the worker.

use crate::support::{House, Told, ask, text, within};
use souffleur::actors::{Error, Request, Sampling};
use souffleur::models;

const PROMPT: &str = "class Stack:\n    def __init__(self):\n";

async fn sampled(house: &House, sampling: Sampling) -> Told {
    house.run(Request { sampling, ..ask(text(PROMPT), 24) }).await
}

#[test]
fn a_bias_forces_and_forbids_tokens() {
    within(async {
        let house = House::warm();
        let favourite = sampled(&house, Sampling::default()).await.ids()[0];
        let bias = |token, bias| Sampling { logit_bias: vec![(token, bias)], ..Sampling::default() };
        let without = sampled(&house, bias(favourite, -100.0)).await;
        assert!(!without.ids().contains(&favourite));

        let unlikely = house.tokenize("zebra").await[0];
        let forced = sampled(&house, bias(unlikely, 100.0)).await;
        assert!(forced.tokens.len() == 24 && forced.ids().iter().all(|id| *id == unlikely), "{:?}", forced.ids());
    });
}

#[test]
fn a_bias_beyond_the_vocabulary_is_refused() {
    within(async {
        let house = House::warm();
        let vocabulary = house.model_info().await.vocab_size;
        for token in [vocabulary, u32::MAX] {
            let told = sampled(&house, Sampling { logit_bias: vec![(0, 0.0), (token, 1.0)], ..Sampling::default() }).await;
            let Error::Model(models::Error::Parameter { reason, .. }) = told.error() else { panic!("{told:?}") };
            assert!(reason.contains(&token.to_string()) && reason.contains(&vocabulary.to_string()), "{reason}");
        }
        let last = sampled(&house, Sampling { logit_bias: vec![(vocabulary - 1, -1.0)], ..Sampling::default() }).await;
        assert!(!last.tokens.is_empty());
    });
}

#[test]
fn a_seed_reproduces_its_text_and_another_gives_another() {
    within(async {
        let house = House::warm();
        let seeded = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let first = sampled(&house, seeded(7)).await;
        assert_eq!(first.tokens, sampled(&house, seeded(7)).await.tokens);
        // In another process as well.
        assert_eq!(first.tokens, sampled(&House::cold(), seeded(7)).await.tokens);
        let mut others = Vec::new();
        for seed in 8..12 {
            others.push(sampled(&house, seeded(seed)).await.ids());
        }
        others.push(first.ids());
        others.sort();
        others.dedup();
        assert!(others.len() >= 3, "five seeds gave {} texts", others.len());
    });
}

#[test]
fn cuts_to_one_token_are_greedy() {
    within(async {
        let house = House::warm();
        let greedy = sampled(&house, Sampling::default()).await;
        let hot = Sampling { temperature: 1.5, seed: 3, ..Sampling::default() };
        for sampling in [
            Sampling { top_k: 1, ..hot.clone() },
            Sampling { top_p: 1e-6, ..hot.clone() },
            Sampling { min_p: 1.0, ..hot.clone() },
            Sampling { temperature: 1e-6, ..hot.clone() },
        ] {
            let told = sampled(&house, sampling.clone()).await;
            assert_eq!(told.ids(), greedy.ids(), "{sampling:?}");
        }
        assert_ne!(sampled(&house, hot).await.ids(), greedy.ids(), "nothing was cut, and yet nothing was drawn");
    });
}

#[test]
fn penalties_look_back_over_prompt_and_answer() {
    within(async {
        let house = House::warm();
        // Nothing that stands in the window can come again.
        let strict = Sampling { presence_penalty: 1000.0, repetition_window: 4096, ..Sampling::default() };
        let told = sampled(&house, strict).await;
        let mut all = house.tokenize(PROMPT).await;
        let prompt = all.len();
        all.extend(told.ids());
        for (index, id) in all.iter().enumerate().skip(prompt) {
            assert!(!all[..index].contains(id), "token {id} came again at {index}");
        }
        // And without a window there is nothing to look back over.
        let blind = Sampling { presence_penalty: 1000.0, repetition_window: 0, ..Sampling::default() };
        assert_eq!(sampled(&house, blind).await.ids(), sampled(&house, Sampling::default()).await.ids());
    });
}

#[test]
fn log_probabilities_are_those_of_the_model_and_in_order() {
    within(async {
        let house = House::warm();
        let told = house.run(Request { logprobs: Some(5), ..ask(text(PROMPT), 16) }).await;
        for sampled in &told.tokens {
            assert_eq!(sampled.top.len(), 5);
            assert!(sampled.top.is_sorted_by(|a, b| a.1 >= b.1) && sampled.top[0].1 <= 0.0, "{:?}", sampled.top);
            // Greedy takes the first of them.
            assert_eq!((sampled.token, sampled.logprob), sampled.top[0]);
            assert!(sampled.top.iter().map(|(_, logprob)| logprob.exp()).sum::<f32>() <= 1.0 + 1e-4);
        }
    });
}
