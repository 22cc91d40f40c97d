//! The perplexity with int8 activations compared with f32 activations.

use crate::{Model, QWEN_CODER_0_5B, QWEN_CODER_1_5B, SMOLLM2, each_logits, gguf, load, log_sum_exp};
use souffleur::models::{Activations, Prompt};

/// Tokens of the text; each but the first is predicted.
const TOKENS: usize = 4096;

/// exp(mean negative log-probability of the tokens).
fn perplexity(name: &str, activations: Activations) -> f64 {
    let Model { codec, mut decoder } = load(&gguf(name), activations);
    // A fixed text, so that results can be compared over time.
    let mut tokens = codec.encode(&Prompt::Text(include_str!("perplexity.txt").to_owned())).expect("tokens");
    tokens.truncate(TOKENS);
    assert_eq!(tokens.len(), TOKENS, "the text is too short");
    let (mut negative_log_likelihood, mut next) = (0.0, tokens[1..].iter());
    each_logits(&mut decoder, &tokens, TOKENS, |logits| {
        if let Some(&next) = next.next() {
            negative_log_likelihood += f64::from(log_sum_exp(&logits)) - f64::from(logits[next as usize]);
        }
    });
    (negative_log_likelihood / (TOKENS - 1) as f64).exp()
}

fn compare(name: &str) {
    let (exact, int8) = (perplexity(name, Activations::F32), perplexity(name, Activations::Int8));
    let difference = int8 / exact - 1.0;
    eprintln!("{name}: perplexity {int8:.4} with int8 activations, {exact:.4} with f32, {:+.3} %", difference * 100.0);
    assert!(difference.abs() <= 0.005, "{name}: {int8} is not within 0.5 % of {exact}");
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn smollm2_keeps_its_perplexity_with_int8_activations() {
    compare(SMOLLM2);
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn coder_05_keeps_its_perplexity_with_int8_activations() {
    compare(QWEN_CODER_0_5B);
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn coder_15_keeps_its_perplexity_with_int8_activations() {
    compare(QWEN_CODER_1_5B);
}
