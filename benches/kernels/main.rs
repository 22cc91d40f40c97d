//! The kernels one by one, on one thread: `cargo bench --bench kernels -- products` (or attention, quantize, sampler).
//! Further words select by name: `-- products Q4_K`.
//!
//! Elements per second are multiplications (products, attention), inputs (quantize) and logits (sampler).

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

mod timing;

use souffleur::models::backend::cpu::Cpu;
use souffleur::models::backend::{Backend, Span};
use souffleur::models::network::DecoderSpec;
use souffleur::models::sampler::Sampler;
use souffleur::models::weights::{Block, Element, Files, Matrix, Quantization, Quantized};
use souffleur::models::{Activations, Embedded, ModelSource, Sampling};
use std::borrow::Cow;
use std::hint::black_box;
use timing::Timing;

type Packed = <Cpu as Backend>::Matrix;

/// The weights fit the L2 cache, so this measures the kernel and not the memory.
const OUTPUTS: usize = 128;
const INPUTS: usize = 1024;

fn main() {
    println!("{}", Cpu::describe().expect("a known instruction set"));
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

fn plain(backend: &mut Cpu, element: Element, rows: usize, columns: usize) -> Packed {
    let data = Cow::Owned(bytes(rows * columns * element.bytes()));
    backend.matrix(&Matrix::Plain { rows, columns, element, data }).expect("it packs")
}

fn affine(backend: &mut Cpu, bits: usize, group: usize) -> Packed {
    let words = bytes(OUTPUTS * INPUTS * bits / 8);
    let scales = bytes(OUTPUTS * INPUTS / group * 2);
    let quantization = Quantization { bits, group };
    let (rows, columns, element) = (OUTPUTS, INPUTS, Element::Bf16);
    let quantized = Quantized { rows, columns, quantization, words: &words, element, scales: &scales, biases: &scales };
    backend.matrix(&Matrix::Quantized(quantized)).expect("it packs")
}

/// The first rows of `table` as activations.
fn rows(backend: &mut Cpu, table: &Packed, spec: &DecoderSpec, rows: usize) -> <Cpu as Backend>::Tensor {
    let tokens: Vec<u32> = (0..rows as u32).collect();
    let mut cache = backend.cache(spec);
    backend.embed(table, &[Span { tokens: &tokens, position: 0, cache: &mut cache }])
}

fn products(timing: &Timing) {
    let spec = spec();
    let mut backend = Cpu::new(&spec, 1, Activations::Int8).expect("a backend");
    let mut weights: Vec<(String, Packed)> = Vec::new();
    for block in Block::ALL {
        let data = Cow::Owned(bytes(OUTPUTS * INPUTS / block.weights() * block.bytes()));
        let weight = backend.matrix(&Matrix::Blocks { rows: OUTPUTS, columns: INPUTS, block, data }).expect("it packs");
        weights.push((format!("{block:?}"), weight));
    }
    for (bits, group) in [(4, 32), (4, 64), (6, 64), (8, 64)] {
        weights.push((format!("mlx {bits}-bit, groups of {group}"), affine(&mut backend, bits, group)));
    }
    for element in [Element::F32, Element::F16, Element::Bf16] {
        weights.push((format!("{element:?}"), plain(&mut backend, element, OUTPUTS, INPUTS)));
    }
    let table = plain(&mut backend, Element::F32, 64, INPUTS);
    for (name, weight) in &weights {
        for count in [1, 4, 16, 64] {
            let x = rows(&mut backend, &table, &spec, count);
            timing.measure(&format!("products, {name}, {count} rows"), count * OUTPUTS * INPUTS, || {
                black_box(backend.project(&x, &[weight]));
            });
        }
    }
}

/// Includes a product of eight outputs, which takes little time beside the quantization.
fn quantize(timing: &Timing) {
    let spec = spec();
    let mut backend = Cpu::new(&spec, 1, Activations::Int8).expect("a backend");
    let data = Cow::Owned(bytes(8 * INPUTS / Block::Q4_1.weights() * Block::Q4_1.bytes()));
    let weight = backend.matrix(&Matrix::Blocks { rows: 8, columns: INPUTS, block: Block::Q4_1, data }).expect("it packs");
    let table = plain(&mut backend, Element::F32, 64, INPUTS);
    for count in [1, 64] {
        let x = rows(&mut backend, &table, &spec, count);
        timing.measure(&format!("quantize, {count} rows"), count * INPUTS, || {
            black_box(backend.project(&x, &[&weight]));
        });
    }
}

/// One layer of Qwen2.5-Coder-0.5B, Qwen2.5-Coder-1.5B and SmolLM2-135M, for one row and for 64, over two context lengths.
fn attention(timing: &Timing) {
    for (heads, kv_heads, head_dim) in [(14, 2, 64), (12, 2, 128), (9, 3, 64)] {
        let mut spec = spec();
        (spec.layers, spec.heads, spec.kv_heads, spec.head_dim) = (1, heads, kv_heads, head_dim);
        let mut backend = Cpu::new(&spec, 1, Activations::Int8).expect("a backend");
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let tables = [queries, keys, keys].map(|width| plain(&mut backend, Element::Bf16, 512, width));
        for depth in [512, 4096] {
            let mut cache = backend.cache(&spec);
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

fn step(backend: &mut Cpu, spec: &DecoderSpec, tables: &[Packed; 3], cache: &mut <Cpu as Backend>::Cache, position: usize, rows: usize) {
    let tokens: Vec<u32> = (0..rows as u32).collect();
    let mut spans = [Span { tokens: &tokens, position, cache }];
    let qkv = tables.each_ref().map(|table| backend.embed(table, &spans));
    black_box(backend.attend(qkv, 0, spec, &mut spans));
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
                black_box(sampler.sample(logits, &[1, 2, 3]));
            },
        );
    }
}
