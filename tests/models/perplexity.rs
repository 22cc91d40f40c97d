//! How much of a model's knowledge the eight-bit activations cost.

use crate::{CODER_05, CODER_15, Model, SMOLLM2, gguf, load};
use souffleur::models::backend::{Backend, Span};
use souffleur::models::{Activations, ModelSource, Prompt};

/// Tokens of the text, of which each but the first is foretold.
const TOKENS: usize = 4096;

/// The perplexity of a text: e to the mean of the negative log-probabilities of its tokens.
fn perplexity(source: &ModelSource, activations: Activations) -> f64 {
    let Model { language, mut decoder } = load(source, activations);
    let text = [include_str!("answers.rs"), include_str!("make.py"), include_str!("tokenizers.rs")].join("\n");
    let mut tokens = language.encode(&Prompt::Text(text)).expect("tokens");
    tokens.truncate(TOKENS);
    assert_eq!(tokens.len(), TOKENS, "the text is too short");
    let mut cache = decoder.backend.cache(&decoder.spec.clone());
    let (mut position, mut surprise) = (0, 0.0);
    for part in tokens.chunks(128) {
        let rows: Vec<usize> = (0..part.len()).collect();
        let tensor = decoder.step(&mut [Span { tokens: part, position, cache: &mut cache }], &rows);
        position += part.len();
        for (logits, &next) in decoder.backend.read(&tensor).iter().zip(&tokens[position - part.len() + 1..]) {
            let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let total = most + logits.iter().map(|&x| (f64::from(x) - most).exp()).sum::<f64>().ln();
            surprise += total - f64::from(logits[next as usize]);
        }
    }
    (surprise / (TOKENS - 1) as f64).exp()
}

fn compare(name: &str) {
    let (exact, int8) = (perplexity(&gguf(name), Activations::F32), perplexity(&gguf(name), Activations::Int8));
    let apart = int8 / exact - 1.0;
    eprintln!("{name}: perplexity {int8:.4} with int8 activations, {exact:.4} with f32, {:+.3} %", apart * 100.0);
    assert!(apart.abs() <= 0.005, "{name}: {int8} is not within 0.5 % of {exact}");
}

#[test]
#[ignore = "needs models: tests/models/fetch.sh"]
fn smollm2_is_as_sure_with_int8_activations() {
    compare(SMOLLM2);
}

#[test]
#[ignore = "needs models: tests/models/fetch.sh"]
fn coder_05_is_as_sure_with_int8_activations() {
    compare(CODER_05);
}

#[test]
#[ignore = "needs models: tests/models/fetch.sh"]
fn coder_15_is_as_sure_with_int8_activations() {
    compare(CODER_15);
}
