//! Greedy completions compared with llama.cpp's on the same files. `make.py` generated llama.cpp's.

use crate::{Model, QWEN_CODER_0_5B, QWEN_CODER_1_5B, SMOLLM2, gguf, likeliest, load, log_sum_exp, logits};
use serde::Deserialize;
use souffleur::models::backend::{Backend, Span};
use souffleur::models::{Activations, Prompt};

#[derive(Deserialize)]
struct Reference {
    ends: Vec<u32>,
    prompts: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    text: Option<String>,
    prefix: Option<String>,
    suffix: Option<String>,
    ids: Vec<u32>,
    tokens: Vec<u32>,
    /// Best id, its log-probability, second id, its log-probability.
    top2: Vec<Option<Top>>,
}

type Top = (u32, f32, u32, f32);
/// Per position the log-probabilities of the two best tokens, if known.
type Pairs = Vec<Option<[f32; 2]>>;

fn infill(prefix: &str, suffix: &str) -> Prompt {
    let (prefix, suffix) = (prefix.into(), suffix.into());
    Prompt::Infill { prefix, suffix, path: None, repository: None, files: Vec::new(), order: None }
}

impl Case {
    fn prompt(&self) -> Prompt {
        match (&self.text, &self.prefix, &self.suffix) {
            (Some(text), None, None) => Prompt::Text(text.clone()),
            (None, Some(prefix), Some(suffix)) => infill(prefix, suffix),
            _ => panic!("{} is neither a completion nor an infill", self.name),
        }
    }

    /// Our log-probabilities of llama.cpp's two best tokens at every position.
    fn logprobs(&self, logits: &[Vec<f32>]) -> Pairs {
        let of = |(top, logits): (&Option<Top>, &Vec<f32>)| {
            let total = log_sum_exp(logits);
            top.map(|(best, _, second, _)| [best, second].map(|id| logits[id as usize] - total))
        };
        self.top2.iter().zip(logits).map(of).collect()
    }

    fn reference(&self) -> Pairs {
        self.top2.iter().map(|top| top.map(|(_, best, _, second)| [best, second])).collect()
    }
}

/// Absolute differences of log-probabilities.
fn distances(one: &Pairs, other: &Pairs) -> Vec<f32> {
    let pairs = one.iter().zip(other).filter_map(|(a, b)| a.zip(*b));
    pairs.flat_map(|(a, b)| [(a[0] - b[0]).abs(), (a[1] - b[1]).abs()]).collect()
}

fn largest(distances: &[f32]) -> f32 {
    distances.iter().copied().fold(0.0, f32::max)
}

fn mean(distances: &[f32]) -> f32 {
    distances.iter().sum::<f32>() / distances.len() as f32
}

/// Both implementations quantize activations to 8 bits, in different ways. Our f32 activations are the common reference:
/// our error against it must not be larger than llama.cpp's.
fn compare(model: &str, json: &str) {
    let reference: Reference = serde_json::from_str(json).expect("make.py writes this shape");
    let mut int8 = load(&gguf(model), Activations::Int8);
    let mut exact = load(&gguf(model), Activations::F32);
    let (mut equal, mut all_ours, mut all_theirs) = (0, Vec::new(), Vec::new());
    for case in &reference.prompts {
        let name = format!("{model} {}", case.name);
        assert_eq!(int8.codec.encode(&case.prompt()).expect("tokens"), case.ids, "{name}");
        // Up to the first difference, free-running generation sees exactly these tokens.
        let tokens: Vec<u32> = case.ids.iter().chain(&case.tokens[..case.tokens.len() - 1]).copied().collect();
        let logits_int8 = logits(&mut int8.decoder, &tokens, case.tokens.len());
        let exact_logprobs = case.logprobs(&logits(&mut exact.decoder, &tokens, case.tokens.len()));
        let ours = distances(&case.logprobs(&logits_int8), &exact_logprobs);
        all_theirs.extend(distances(&case.reference(), &exact_logprobs));
        let error = largest(&ours);
        all_ours.extend(ours);
        let Some(position) = (0..logits_int8.len()).find(|&i| likeliest(&logits_int8[i], &reference.ends) != case.tokens[i]) else {
            equal += 1;
            continue;
        };
        let Some([best, second]) = case.reference()[position] else {
            panic!("{name}: differs inside a character at token {position}");
        };
        let gap = best - second;
        assert!(gap <= 2.0 * error, "{name}: token {position} differs, gap of the best two {gap}, error {error}");
        eprintln!("{name}: first difference at token {position}, gap of the best two {gap:.3}, error {error:.3}");
    }
    let (ours, theirs) = (mean(&all_ours), mean(&all_theirs));
    eprintln!("{model}: {equal} of {} texts equal; error of the log-probabilities, mean and maximum:", reference.prompts.len());
    eprintln!("  ours {ours:.4} {:.3}, llama.cpp's {theirs:.4} {:.3}", largest(&all_ours), largest(&all_theirs));
    assert!(ours <= 1.2 * theirs, "{model}: our error is {ours}, llama.cpp's {theirs}");
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn smollm2_completes_as_llama_cpp_does() {
    compare(SMOLLM2, include_str!("llama_cpp/SmolLM2-135M-Instruct.Q4_1.json"));
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn coder_05_completes_as_llama_cpp_does() {
    compare(QWEN_CODER_0_5B, include_str!("llama_cpp/qwen2.5-coder-0.5b-instruct-q4_k_m.json"));
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn coder_15_completes_as_llama_cpp_does() {
    compare(QWEN_CODER_1_5B, include_str!("llama_cpp/qwen2.5-coder-1.5b-instruct-q4_k_m.json"));
}

/// The greedy completion, and whether it ended with EOS.
fn complete(model: &mut Model, prompt: &Prompt, tokens_max: usize) -> (String, bool) {
    let Model { codec, decoder } = model;
    let mut cache = decoder.backend.cache();
    let (mut new, mut position, mut tokens) = (codec.encode(prompt).expect("tokens"), 0, Vec::new());
    while tokens.len() < tokens_max {
        let tensor = decoder.step(&mut [Span::ids(&new, position, &mut cache)], &[new.len() - 1]);
        position += new.len();
        let token = likeliest(&decoder.backend.to_host(&tensor).expect("this backend does not fail")[0], &[]);
        if codec.eos_ids(prompt).contains(&token) {
            return (codec.tokenizer.decode(&tokens).expect("text"), true);
        }
        tokens.push(token);
        new = vec![token];
    }
    (codec.tokenizer.decode(&tokens).expect("text"), false)
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn coder_15_fills_a_binary_search_and_stops() {
    let prefix = "def binary_search(a, x):\n    lo, hi = 0, len(a) - 1\n    while lo <= hi:\n        mid =";
    let suffix = "\n        if a[mid] == x:\n            return mid\n        elif a[mid] < x:\n            lo = mid + 1\n        \
                  else:\n            hi = mid - 1\n    return -1\n";
    let mut model = load(&gguf(QWEN_CODER_1_5B), Activations::Int8);
    assert_eq!(model.codec.family.name, "qwen");
    assert_eq!(complete(&mut model, &infill(prefix, suffix), 24), (" (lo + hi) // 2".to_owned(), true));
    // With the space in the prompt, this and `lo + (hi - lo) // 2` are nearly equally likely. Both are correct and end.
    let (text, ended) = complete(&mut model, &infill(&format!("{prefix} "), suffix), 24);
    assert!(ended && ["(lo + hi) // 2", "lo + (hi - lo) // 2"].contains(&text.as_str()), "{text:?}");
}
