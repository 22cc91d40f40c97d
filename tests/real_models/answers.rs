//! Greedy answers against llama.cpp's on the same files (`make.py` says how those were made).

use crate::{CODER_05, CODER_15, Model, SMOLLM2, gguf, likeliest, load, log_total, logits};
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
    top2: Vec<Option<Top>>,
}

type Top = (u32, f32, u32, f32);
/// Log-probabilities of the two best of every position, where they are known.
type Pairs = Vec<Option<[f32; 2]>>;

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

    /// Log-probabilities of llama.cpp's two best of every position, by logits.
    fn logprobs(&self, logits: &[Vec<f32>]) -> Pairs {
        let of = |(top, logits): (&Option<Top>, &Vec<f32>)| {
            let total = log_total(logits);
            top.map(|(best, _, second, _)| [best, second].map(|id| logits[id as usize] - total))
        };
        self.top2.iter().zip(logits).map(of).collect()
    }

    fn reference(&self) -> Pairs {
        self.top2.iter().map(|top| top.map(|(_, best, _, second)| [best, second])).collect()
    }
}

/// Distances of log-probabilities.
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

/// Both sides round activations to eight bits, each in its way. With f32 activations, which round nothing, it shows how
/// far each is from what the weights say.
fn compare(model: &str, goldens: &str) {
    let goldens: Goldens = serde_json::from_str(goldens).expect("make.py writes this shape");
    let mut int8 = load(&gguf(model), Activations::Int8);
    let mut exact = load(&gguf(model), Activations::F32);
    let (mut equal, mut all_ours, mut all_theirs) = (0, Vec::new(), Vec::new());
    for golden in &goldens.prompts {
        let name = format!("{model} {}", golden.name);
        assert_eq!(int8.codec.encode(&golden.prompt()).expect("tokens"), golden.ids, "{name}");
        // Up to its first difference the free-running text reads exactly these tokens.
        let tokens: Vec<u32> = golden.ids.iter().chain(&golden.tokens[..golden.tokens.len() - 1]).copied().collect();
        let logits_int8 = logits(&mut int8.decoder, &tokens, golden.tokens.len());
        let exactly = golden.logprobs(&logits(&mut exact.decoder, &tokens, golden.tokens.len()));
        let ours = distances(&golden.logprobs(&logits_int8), &exactly);
        all_theirs.extend(distances(&golden.reference(), &exactly));
        let error = largest(&ours);
        all_ours.extend(ours);
        let Some(position) = (0..logits_int8.len()).find(|&i| likeliest(&logits_int8[i], &goldens.ends) != golden.tokens[i]) else {
            equal += 1;
            continue;
        };
        let Some([best, second]) = golden.reference()[position] else {
            panic!("{name}: differs inside a character at token {position}");
        };
        let apart = best - second;
        assert!(apart <= 2.0 * error, "{name}: token {position} differs, the best two {apart} apart, error {error}");
        eprintln!("{name}: first differs at token {position}, the best two {apart:.3} apart, error {error:.3}");
    }
    let (ours, theirs) = (mean(&all_ours), mean(&all_theirs));
    eprintln!("{model}: {equal} of {} texts equal; log-probabilities from the exact ones, mean and largest:", goldens.prompts.len());
    eprintln!("  ours {ours:.4} {:.3}, llama.cpp's {theirs:.4} {:.3}", largest(&all_ours), largest(&all_theirs));
    assert!(ours <= 1.2 * theirs, "{model}: ours are {ours} from the exact ones, llama.cpp's {theirs}");
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn smollm2_answers_as_llama_cpp_does() {
    compare(SMOLLM2, include_str!("goldens/SmolLM2-135M-Instruct.Q4_1.json"));
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn coder_05_answers_as_llama_cpp_does() {
    compare(CODER_05, include_str!("goldens/qwen2.5-coder-0.5b-instruct-q4_k_m.json"));
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn coder_15_answers_as_llama_cpp_does() {
    compare(CODER_15, include_str!("goldens/qwen2.5-coder-1.5b-instruct-q4_k_m.json"));
}

/// The greedy answer and whether the model ended it.
fn answer(model: &mut Model, prompt: &Prompt, tokens_max: usize) -> (String, bool) {
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
    let mut model = load(&gguf(CODER_15), Activations::Int8);
    assert_eq!(model.codec.family.name, "qwen");
    assert_eq!(answer(&mut model, &infill(prefix, suffix), 24), (" (lo + hi) // 2".to_owned(), true));
    // With the space typed the model wavers between this and `lo + (hi - lo) // 2`: both are right, and both end.
    let (text, ended) = answer(&mut model, &infill(&format!("{prefix} "), suffix), 24);
    assert!(ended && ["(lo + hi) // 2", "lo + (hi - lo) // 2"].contains(&text.as_str()), "{text:?}");
}
