//! Real models: greedy output compared with llama.cpp, tokens with Hugging Face tokenizers, logits between two formats.
//!
//! Ignored by default, because they need models that `fetch.sh` downloads:
//!
//! ```sh
//! tests/real_models/fetch.sh /tmp/models
//! SOUFFLEUR_MODELS=/tmp/models cargo test --release --test real_models -- --ignored --nocapture
//! ```

mod completions;
mod formats;
mod perplexity;
mod tokenizers;

use souffleur::models::backend::cpu::Cpu;
use souffleur::models::backend::{Backend, Span};
use souffleur::models::codec::TextCodec;
use souffleur::models::network::{Decoder, DecoderSpec};
use souffleur::models::weights::{Files, Tensors};
use souffleur::models::{Activations, CpuSettings, ModelSource};
use std::path::PathBuf;

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1";
const QWEN_CODER_0_5B: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m";
const QWEN_CODER_1_5B: &str = "qwen2.5-coder-1.5b-instruct-q4_k_m";

fn folder() -> PathBuf {
    std::env::var_os("SOUFFLEUR_MODELS").expect("SOUFFLEUR_MODELS names the folder that tests/real_models/fetch.sh filled").into()
}

fn gguf(model: &str) -> ModelSource {
    ModelSource::File(folder().join(format!("{model}.gguf")))
}

struct Model {
    codec: TextCodec,
    decoder: Decoder<Cpu>,
}

fn load(source: &ModelSource, activations: Activations) -> Model {
    let files = Files::open(source, None).expect("files");
    let spec = DecoderSpec::parse(&files).expect("a spec");
    let codec = TextCodec::open(&files, &spec).expect("a codec");
    let backend = Cpu::open(&spec, &CpuSettings { threads: 0, activations }).expect("a backend");
    let decoder = Decoder::load(spec, &Tensors::open(&files).expect("tensors"), backend, &mut |_, _| {}).expect("a network");
    Model { codec, decoder }
}

/// Calls `on_logits` for each of the last `wanted` tokens in order: all logits together can take gigabytes.
fn each_logits(decoder: &mut Decoder<Cpu>, tokens: &[u32], wanted: usize, on_logits: impl FnMut(Vec<f32>)) {
    let mut cache = decoder.backend.cache();
    let (mut on_logits, mut position, first) = (on_logits, 0, tokens.len() - wanted);
    for part in tokens.chunks(128) {
        let rows: Vec<usize> = (0..part.len()).filter(|row| position + row >= first).collect();
        let tensor = decoder.step(&mut [Span::ids(part, position, &mut cache)], &rows);
        decoder.backend.to_host(&tensor).expect("this backend does not fail").into_iter().for_each(&mut on_logits);
        position += part.len();
    }
}

/// The logits after each of the last `wanted` tokens.
fn logits(decoder: &mut Decoder<Cpu>, tokens: &[u32], wanted: usize) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    each_logits(decoder, tokens, wanted, |logits| all.push(logits));
    all
}

/// The log of the sum of exponentials: a logit minus this is a log-probability.
fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max + logits.iter().map(|x| f64::from(x - max).exp()).sum::<f64>().ln() as f32
}

/// The token with the largest logit, except those in `without`.
fn likeliest(logits: &[f32], without: &[u32]) -> u32 {
    let all = (0..logits.len() as u32).rev().filter(|id| !without.contains(id));
    all.max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize])).expect("a vocabulary")
}
