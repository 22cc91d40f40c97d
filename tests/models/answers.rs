//! Greedy answers against llama.cpp's on the same files (`make.py` says how those were made).

use crate::{CODER_05, CODER_15, Model, SMOLLM2, gguf, likeliest, load, logits};
use serde::Deserialize;
use souffleur::models::backend::{Backend, Span};
use souffleur::models::{Activations, Prompt};

#[derive(Deserialize)]
struct Goldens {
    ends: Vec<u32>,
    prompts: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    name: String,
    text: Option<String>,
    prefix: Option<String>,
    suffix: Option<String>,
    ids: Vec<u32>,
    tokens: Vec<u32>,
    /// Best id, its log-probability, second id, its log-probability.
    top2: Vec<Option<(u32, f32, u32, f32)>>,
}

fn infill(prefix: &str, suffix: &str) -> Prompt {
    let (prefix, suffix) = (prefix.into(), suffix.into());
    Prompt::Infill { prefix, suffix, path: None, repository: None, files: Vec::new(), order: None }
}

impl Golden {
    fn prompt(&self) -> Prompt {
        match (&self.text, &self.prefix, &self.suffix) {
            (Some(text), None, None) => Prompt::Text(text.clone()),
            (None, Some(prefix), Some(suffix)) => infill(prefix, suffix),
            _ => panic!("{} is neither a text nor a hole", self.name),
        }
    }

    /// The largest distance of a log-probability from llama.cpp's, over the two best of every position.
    fn error(&self, logits: &[Vec<f32>]) -> f32 {
        let distances = self.top2.iter().zip(logits).filter_map(|(top, logits)| top.map(|top| (top, logits))).flat_map(|(top, logits)| {
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total = most + logits.iter().map(|x| f64::from(x - most).exp()).sum::<f64>().ln() as f32;
            [(top.0, top.1), (top.2, top.3)].map(|(id, logprob)| (logits[id as usize] - total - logprob).abs())
        });
        distances.fold(0.0, f32::max)
    }
}

fn compare(model: &str, goldens: &str) {
    let goldens: Goldens = serde_json::from_str(goldens).expect("make.py writes this shape");
    let Model { language, mut decoder } = load(&gguf(model), Activations::Int8);
    let (mut equal, mut worst) = (0, 0f32);
    for golden in &goldens.prompts {
        assert_eq!(language.encode(&golden.prompt()).expect("tokens"), golden.ids, "{model} {}", golden.name);
        // Up to its first difference the free-running text reads exactly these tokens.
        let tokens: Vec<u32> = golden.ids.iter().chain(&golden.tokens[..golden.tokens.len() - 1]).copied().collect();
        let logits = logits(&mut decoder, &tokens, golden.tokens.len());
        let error = golden.error(&logits);
        worst = worst.max(error);
        let Some(position) = (0..logits.len()).find(|&i| likeliest(&logits[i], &goldens.ends) != golden.tokens[i]) else {
            equal += 1;
            continue;
        };
        let Some((_, best, _, second)) = golden.top2[position] else {
            panic!("{model} {}: differs inside a character at token {position}", golden.name);
        };
        let apart = best - second;
        assert!(apart <= 2.0 * error, "{model} {}: token {position} differs, the best two {apart} apart, error {error}", golden.name);
        println!("{model} {}: first differs at token {position}, the best two {apart:.3} apart, error {error:.3}", golden.name);
    }
    println!("{model}: {equal} of {} texts equal, largest distance of a log-probability {worst:.3}", goldens.prompts.len());
}

#[test]
#[ignore = "needs models: tests/models/fetch.sh"]
fn smollm2_answers_as_llama_cpp_does() {
    compare(SMOLLM2, include_str!("goldens/SmolLM2-135M-Instruct.Q4_1.json"));
}

#[test]
#[ignore = "needs models: tests/models/fetch.sh"]
fn coder_05_answers_as_llama_cpp_does() {
    compare(CODER_05, include_str!("goldens/qwen2.5-coder-0.5b-instruct-q4_k_m.json"));
}

#[test]
#[ignore = "needs models: tests/models/fetch.sh"]
fn coder_15_answers_as_llama_cpp_does() {
    compare(CODER_15, include_str!("goldens/qwen2.5-coder-1.5b-instruct-q4_k_m.json"));
}

/// The greedy answer and whether the model ended it.
fn answer(model: &mut Model, prompt: &Prompt, tokens_max: usize) -> (String, bool) {
    let Model { language, decoder } = model;
    let mut cache = decoder.backend.cache(&decoder.spec.clone());
    let (mut new, mut position, mut tokens) = (language.encode(prompt).expect("tokens"), 0, Vec::new());
    while tokens.len() < tokens_max {
        let tensor = decoder.step(&mut [Span { tokens: &new, position, cache: &mut cache }], &[new.len() - 1]);
        position += new.len();
        let token = likeliest(&decoder.backend.read(&tensor)[0], &[]);
        if language.ends(prompt).contains(&token) {
            return (language.tokenizer.decode(&tokens).expect("text"), true);
        }
        tokens.push(token);
        new = vec![token];
    }
    (language.tokenizer.decode(&tokens).expect("text"), false)
}

#[test]
#[ignore = "needs models: tests/models/fetch.sh"]
fn coder_15_fills_a_binary_search_and_stops() {
    let prefix = "def binary_search(a, x):\n    lo, hi = 0, len(a) - 1\n    while lo <= hi:\n        mid =";
    let suffix = "\n        if a[mid] == x:\n            return mid\n        elif a[mid] < x:\n            lo = mid + 1\n        \
                  else:\n            hi = mid - 1\n    return -1\n";
    let mut model = load(&gguf(CODER_15), Activations::Int8);
    assert_eq!(model.language.family.name, "qwen");
    assert_eq!(answer(&mut model, &infill(prefix, suffix), 24), (" (lo + hi) // 2".to_owned(), true));
    // With the space typed the model wavers between this and `lo + (hi - lo) // 2`: both are right, and both end.
    let (text, ended) = answer(&mut model, &infill(&format!("{prefix} "), suffix), 24);
    assert!(ended && ["(lo + hi) // 2", "lo + (hi - lo) // 2"].contains(&text.as_str()), "{text:?}");
}
