//! How much of a model's knowledge the eight-bit activations cost.

use crate::{CODER_05, CODER_15, Model, SMOLLM2, each_logits, gguf, load, log_total};
use souffleur::models::{Activations, Prompt};

/// Tokens of the text, of which each but the first is foretold.
const TOKENS: usize = 4096;

/// The perplexity of a text: e to the mean of the negative log-probabilities of its tokens.
fn perplexity(name: &str, activations: Activations) -> f64 {
    let Model { codec, mut decoder } = load(&gguf(name), activations);
    // Code that stays as it is, or figures of different days could not be compared.
    let mut tokens = codec.encode(&Prompt::Text(include_str!("perplexity.txt").to_owned())).expect("tokens");
    tokens.truncate(TOKENS);
    assert_eq!(tokens.len(), TOKENS, "the text is too short");
    let (mut surprise, mut next) = (0.0, tokens[1..].iter());
    each_logits(&mut decoder, &tokens, TOKENS, |logits| {
        if let Some(&next) = next.next() {
            surprise += f64::from(log_total(&logits)) - f64::from(logits[next as usize]);
        }
    });
    (surprise / (TOKENS - 1) as f64).exp()
}

fn compare(name: &str) {
    let (exact, int8) = (perplexity(name, Activations::F32), perplexity(name, Activations::Int8));
    let apart = int8 / exact - 1.0;
    eprintln!("{name}: perplexity {int8:.4} with int8 activations, {exact:.4} with f32, {:+.3} %", apart * 100.0);
    assert!(apart.abs() <= 0.005, "{name}: {int8} is not within 0.5 % of {exact}");
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn smollm2_is_as_sure_with_int8_activations() {
    compare(SMOLLM2);
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn coder_05_is_as_sure_with_int8_activations() {
    compare(CODER_05);
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn coder_15_is_as_sure_with_int8_activations() {
    compare(CODER_15);
}
