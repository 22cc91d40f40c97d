//! The kernels one by one, on one thread: `cargo bench --bench kernels -- products` (or attention, quantize, sampler).
//! Further words select by name: `-- products Q4_K`.
//!
//! Elements per second are multiplications (products, attention), inputs (quantize) and logits (sampler).

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

mod timing;

use souffleur::models::backend::cpu::Cpu;
use souffleur::models::backend::{Backend, LinearPart, Span};
use souffleur::models::network::{Attention, AttentionSpec, DecoderSpec};
use souffleur::models::sampler::Sampler;
use souffleur::models::weights::{Files, FloatType, GgmlBlock, Matrix, Quantization, Quantized};
use souffleur::models::{Activations, CpuSettings, Embedded, ModelSource, Sampling};
use std::borrow::Cow;
use std::hint::black_box;
use timing::Timing;

type Linear = <Cpu as Backend>::Linear;

/// The weights fit the L2 cache, so this measures the kernel and not the memory.
const OUTPUTS: usize = 128;
const INPUTS: usize = 1024;

fn main() {
    println!("{}", Cpu::describe(&CpuSettings::default()).expect("a known instruction set").name);
    let timing = Timing::from_arguments();
    products(&timing);
    quantize(&timing);
    attention(&timing);
    sampler(&timing);
}

/// The embedded model's shape; each bench changes the sizes that it needs.
fn spec() -> DecoderSpec {
    let embedded = Embedded {
        name: "souffleur-46m",
        config: include_bytes!("../../assets/config.json"),
        tokenizer: b"",
        tokenizer_config: b"",
        weights: b"",
    };
    DecoderSpec::parse(&Files::open(&ModelSource::Embedded, Some(embedded)).expect("files")).expect("a network")
}

/// Pseudo-random bytes. Read as scales, none is NaN or a denormal, which would be slow.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0x20 | (state >> 24) as u8 & 0x1f
    };
    (0..count).map(|_| next()).collect()
}

fn plain(backend: &mut Cpu, element: FloatType, rows: usize, columns: usize) -> Linear {
    let data = Cow::Owned(bytes(rows * columns * element.bytes()));
    backend.linear(vec![LinearPart { weight: Matrix::Plain { rows, columns, element, data }, bias: None }]).expect("it packs")
}

fn affine(backend: &mut Cpu, bits: usize, group: usize) -> Linear {
    let words = bytes(OUTPUTS * INPUTS * bits / 8);
    let scales = bytes(OUTPUTS * INPUTS / group * 2);
    let quantization = Quantization { bits, group };
    let (rows, columns, element) = (OUTPUTS, INPUTS, FloatType::Bf16);
    let quantized = Quantized { rows, columns, quantization, words: &words, element, scales: &scales, biases: &scales };
    backend.linear(vec![LinearPart { weight: Matrix::Quantized(quantized), bias: None }]).expect("it packs")
}

/// The first rows of `table` as activations.
fn rows(backend: &mut Cpu, table: &Linear, rows: usize) -> <Cpu as Backend>::Tensor {
    let tokens: Vec<u32> = (0..rows as u32).collect();
    let mut cache = backend.cache();
    backend.embed(table, &[Span::ids(&tokens, 0, &mut cache)])
}

fn products(timing: &Timing) {
    let spec = spec();
    let mut backend = Cpu::open(&spec, &CpuSettings { threads: 1, activations: Activations::Int8 }).expect("a backend");
    let mut weights: Vec<(String, Linear)> = Vec::new();
    for block in GgmlBlock::ALL {
        let data = Cow::Owned(bytes(OUTPUTS * INPUTS / block.elements() * block.bytes()));
        let weight = backend
            .linear(vec![LinearPart { weight: Matrix::Blocks { rows: OUTPUTS, columns: INPUTS, block, data }, bias: None }])
            .expect("it packs");
        weights.push((format!("{block:?}"), weight));
    }
    for (bits, group) in [(4, 32), (4, 64), (6, 64), (8, 64)] {
        weights.push((format!("mlx {bits}-bit, groups of {group}"), affine(&mut backend, bits, group)));
    }
    for element in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
        weights.push((format!("{element:?}"), plain(&mut backend, element, OUTPUTS, INPUTS)));
    }
    let table = plain(&mut backend, FloatType::F32, 64, INPUTS);
    for (name, weight) in &weights {
        for count in [1, 4, 16, 64] {
            let x = rows(&mut backend, &table, count);
            timing.measure(&format!("products, {name}, {count} rows"), count * OUTPUTS * INPUTS, || {
                black_box::<[_; 1]>(backend.project(&x, weight));
            });
        }
    }
}

/// Includes a product of eight outputs, which takes little time beside the quantization.
fn quantize(timing: &Timing) {
    let spec = spec();
    let mut backend = Cpu::open(&spec, &CpuSettings { threads: 1, activations: Activations::Int8 }).expect("a backend");
    let data = Cow::Owned(bytes(8 * INPUTS / GgmlBlock::Q4_1.elements() * GgmlBlock::Q4_1.bytes()));
    let weight = backend
        .linear(vec![LinearPart { weight: Matrix::Blocks { rows: 8, columns: INPUTS, block: GgmlBlock::Q4_1, data }, bias: None }])
        .expect("it packs");
    let table = plain(&mut backend, FloatType::F32, 64, INPUTS);
    for count in [1, 64] {
        let x = rows(&mut backend, &table, count);
        timing.measure(&format!("quantize, {count} rows"), count * INPUTS, || {
            black_box::<[_; 1]>(backend.project(&x, &weight));
        });
    }
}

/// One layer of Qwen2.5-Coder-0.5B, Qwen2.5-Coder-1.5B and SmolLM2-135M, for one row and for 64, over two context lengths.
fn attention(timing: &Timing) {
    for (heads, kv_heads, head_dim) in [(14, 2, 64), (12, 2, 128), (9, 3, 64)] {
        let mut spec = spec();
        spec.layers = 1;
        spec.attention = AttentionSpec { heads, kv_heads, head_dim, ..spec.attention };
        let mut backend = Cpu::open(&spec, &CpuSettings { threads: 1, activations: Activations::Int8 }).expect("a backend");
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let tables = [queries, keys, keys].map(|width| plain(&mut backend, FloatType::Bf16, 512, width));
        for depth in [512, 4096] {
            let mut cache = backend.cache();
            for position in (0..depth).step_by(512) {
                step(&mut backend, &spec, &tables, &mut cache, position, 512);
            }
            for count in [1, 64] {
                let name = format!("attention, {heads}/{kv_heads} heads of {head_dim}, context {depth}, {count} rows");
                timing.measure(&name, count * depth * queries * 2, || {
                    step(&mut backend, &spec, &tables, &mut cache, depth, count);
                    backend.truncate(&mut cache, depth);
                });
            }
        }
    }
}

fn step(backend: &mut Cpu, spec: &DecoderSpec, tables: &[Linear; 3], cache: &mut <Cpu as Backend>::Cache, position: usize, rows: usize) {
    let tokens: Vec<u32> = (0..rows as u32).collect();
    let mut spans = [Span::ids(&tokens, position, cache)];
    let begun = backend.begin(&mut spans);
    let qkv = tables.each_ref().map(|table| backend.embed(table, &spans));
    let attention = Attention { spec: spec.attention.clone(), q_norm: None, k_norm: None };
    black_box(backend.attend(qkv, &attention, 0, &begun, &mut spans));
}

/// With as many logits as the vocabulary of Qwen2.5.
fn sampler(timing: &Timing) {
    let logits: Vec<f32> = bytes(151_936).into_iter().zip(0..).map(|(byte, i)| f32::from(byte) / 4.0 + (i % 97) as f32 / 50.0).collect();
    let settings = [
        ("greedy", Sampling::default()),
        ("temperature 0.8", Sampling { temperature: 0.8, ..Sampling::default() }),
        ("temperature 0.8, top-k 40, top-p 0.9", Sampling { temperature: 0.8, top_k: 40, top_p: 0.9, ..Sampling::default() }),
    ];
    for (name, sampling) in settings {
        let mut sampler = Sampler::new(sampling, None);
        timing.measure_with_setup(
            &format!("sampler, {name}"),
            logits.len(),
            || logits.clone(),
            |logits| {
                black_box(sampler.sample(logits, &[1, 2, 3]).expect("a token"));
            },
        );
    }
}
