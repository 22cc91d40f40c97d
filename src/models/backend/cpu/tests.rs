//! Kernels against the definition of what they compute, and every instruction set against the reference, bit for bit.

use super::attention::{self, Job, Scratch, part_length};
use super::buffer::Arena;
use super::cache::{Cache, Shape};
use super::forms::Grouping;
use super::isa::LANES;
use super::kernels::Kernels;
use super::pack::Packed;
use super::pool::Pool;
use super::quants::Quants;
use crate::models::weights::{FloatType, Matrix, Quantization, Quantized};
use half::{bf16, f16};

/// xorshift64: numbers that are the same in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// In -1..1.
    pub(super) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    pub(super) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// A weight as a file has it, and its values by the format's definition.
struct Source {
    rows: usize,
    columns: usize,
    element: FloatType,
    quantization: Option<Quantization>,
    words: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
    values: Vec<f32>,
}

fn bytes(element: FloatType, values: &[f32]) -> Vec<u8> {
    let one = |x: &f32| match element {
        FloatType::F32 => x.to_le_bytes().to_vec(),
        FloatType::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        FloatType::Bf16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(one).collect()
}

impl Source {
    fn plain(random: &mut Random, rows: usize, columns: usize, element: FloatType) -> Self {
        let words = bytes(element, &random.floats(rows * columns));
        let values = (0..rows * columns).map(|i| element.get(&words, i)).collect();
        Self { rows, columns, element, quantization: None, words, scales: vec![], biases: vec![], values }
    }

    fn quantized(random: &mut Random, rows: usize, columns: usize, element: FloatType, bits: usize, group: usize) -> Self {
        let integers: Vec<u64> = (0..rows * columns).map(|_| random.next() % (1 << bits)).collect();
        let mut words = vec![0u8; rows * columns * bits / 8];
        for row in 0..rows {
            for column in 0..columns {
                for bit in 0..bits {
                    let at = row * columns * bits + column * bits + bit;
                    words[at / 8] |= ((integers[row * columns + column] >> bit & 1) as u8) << (at % 8);
                }
            }
        }
        let scales = bytes(element, &random.floats(rows * columns / group).iter().map(|x| x / 100.0).collect::<Vec<_>>());
        let biases = bytes(element, &random.floats(rows * columns / group));
        let value = |i: usize| integers[i] as f32 * element.get(&scales, i / group) + element.get(&biases, i / group);
        let values = (0..rows * columns).map(value).collect();
        let quantization = Some(Quantization { bits, group });
        Self { rows, columns, element, quantization, words, scales, biases, values }
    }

    fn packed(&self) -> Packed {
        let (rows, columns, element) = (self.rows, self.columns, self.element);
        let matrix = match self.quantization {
            None => Matrix::Plain { rows, columns, element, data: (&*self.words).into() },
            Some(quantization) => {
                let (words, scales, biases) = (&self.words[..], &self.scales[..], &self.biases[..]);
                Matrix::Quantized(Quantized { rows, columns, quantization, words, element, scales, biases })
            }
        };
        Packed::new(&matrix, &mut Arena::default(), &mut Pool::new(1)).expect("a supported shape")
    }

    fn all(random: &mut Random) -> Vec<Self> {
        let mut all = Vec::new();
        for element in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            all.push(Self::plain(random, 24, 64, element));
            all.push(Self::plain(random, 3, 96, element));
            for bits in [2, 3, 4, 5, 6, 8] {
                for group in [32, 64, 128] {
                    all.push(Self::quantized(random, 21, 128 * 3, element, bits, group));
                }
            }
        }
        all
    }
}

pub(super) fn quantize(kernels: &Kernels, x: &[f32], rows: usize, grouping: Grouping) -> Quants {
    let columns = x.len() / rows;
    let mut quants = Quants::default();
    quants.resize(rows, columns, grouping);
    let out = quants.out();
    for row in 0..rows {
        // SAFETY: made for this processor; room for every row.
        unsafe { (kernels.quantize)(&x[row * columns..(row + 1) * columns], row, grouping, out) };
    }
    quants
}

/// What multiplies a weight.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    F32(&'a [f32]),
    Int8(&'a Quants),
}

/// `[rows][outputs]`.
pub(super) fn product(kernels: &Kernels, weight: &Packed, input: Input<'_>, rows: usize) -> Vec<f32> {
    let mut y = vec![0.0; rows * weight.rows];
    let mut sums = vec![0.0; rows * LANES];
    for slab in 0..weight.slabs() {
        // SAFETY: made for this processor; eight sums a row.
        unsafe {
            match input {
                Input::F32(x) => (kernels.slab_f32)(weight, slab, x, rows, sums.as_mut_ptr()),
                Input::Int8(x) => (kernels.slab_int8)(weight, slab, x, sums.as_mut_ptr()),
            }
        }
        for row in 0..rows {
            for lane in 0..LANES.min(weight.rows - slab * LANES) {
                y[row * weight.rows + slab * LANES + lane] = sums[row * LANES + lane];
            }
        }
    }
    y
}

#[test]
fn a_packed_weight_is_the_files_weight() {
    for source in Source::all(&mut Random(1)) {
        let packed = source.packed();
        let mut row = vec![0.0; source.columns];
        for r in 0..source.rows {
            // SAFETY: made for this processor.
            unsafe { (Kernels::all()[0].row)(&packed, r, &mut row) };
            for (got, want) in row.iter().zip(&source.values[r * source.columns..]) {
                assert!(
                    (got - want).abs() <= 1e-6 * want.abs().max(1.0),
                    "{:?} {:?}: {got} is not {want}",
                    source.element,
                    source.quantization
                );
            }
        }
    }
}

#[test]
fn products_are_the_definitions_and_the_same_on_every_instruction_set() {
    let mut random = Random(2);
    for source in Source::all(&mut random) {
        let weight = source.packed();
        let all = random.floats(131 * source.columns);
        let mut of_most: Vec<Vec<f32>> = vec![Vec::new(); 2];
        for rows in [131, 1, 2, 3, 4, 5, 7, 16] {
            let x = &all[..rows * source.columns];
            let exact = |row: usize, output: usize| -> f64 {
                let pairs = x[row * source.columns..(row + 1) * source.columns].iter().zip(&source.values[output * source.columns..]);
                pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            };
            let mut results: Vec<(f32, Vec<Vec<f32>>)> = vec![(1e-4, Vec::new()), (0.25, Vec::new())];
            for kernels in Kernels::all() {
                results[0].1.push(product(kernels, &weight, Input::F32(x), rows));
                if source.quantization.is_some() {
                    let quants = quantize(kernels, x, rows, weight.kind.grouping().expect("integers"));
                    results[1].1.push(product(kernels, &weight, Input::Int8(&quants), rows));
                }
            }
            for ((tolerance, results), most) in results.into_iter().zip(&mut of_most) {
                for result in &results {
                    assert_eq!(result, &results[0], "{:?} {:?}: instruction sets differ", source.element, source.quantization);
                    if most.is_empty() {
                        most.clone_from(result);
                    }
                    assert_eq!(result, &most[..result.len()], "{:?} {:?}: {rows} rows differ", source.element, source.quantization);
                }
                for (i, got) in results.first().into_iter().flatten().enumerate() {
                    let want = exact(i / source.rows, i % source.rows);
                    assert!(
                        (f64::from(*got) - want).abs() < f64::from(tolerance),
                        "{:?} {:?} rows {rows}: {got} is not {want}",
                        source.element,
                        source.quantization
                    );
                }
            }
        }
    }
}

#[test]
fn quantized_activations_of_extremes() {
    for kernels in Kernels::all() {
        let mut x = vec![0.0f32; 64];
        let zero = quantize(kernels, &x, 1, Grouping { span: 32, group: 32, whole: false });
        assert_eq!((zero.scale[0], zero.sum[0], zero.q[0]), (0.0, 0.0, 0));
        x[3] = -1e30;
        x[40] = 1e-40;
        let quants = quantize(kernels, &x, 1, Grouping { span: 32, group: 32, whole: false });
        assert_eq!((quants.q[3], quants.q[40]), (-127, 0), "{}", kernels.name);
        (x[4], x[50]) = (f32::NAN, f32::NEG_INFINITY);
        let quants = quantize(kernels, &x, 1, Grouping { span: 32, group: 32, whole: false });
        assert_eq!((quants.q[3], quants.q[4], quants.q[50], quants.scale[1]), (-127, -127, -127, f32::INFINITY), "{}", kernels.name);
    }
}

/// Softmax attention by its definition, for one query.
fn attention(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
    let dot = |k: &Vec<f32>| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(dot).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..q.len()).map(|d| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[d])).sum::<f64>() / total).collect()
}

/// The same as `attend`, the chunks shared out.
fn by_chunks(kernels: &Kernels, job: &Job<'_>, scratch: &mut Scratch) -> Vec<f32> {
    let (size, part) = (job.shape.head_size, part_length(job.shape.head_size));
    let mut merged = vec![0.0; job.queries() * size];
    let mut chunks = vec![vec![f32::NAN; job.queries() * part]; job.reach()];
    for (chunk, parts) in chunks.iter_mut().enumerate() {
        // SAFETY: made for this processor; room for every query's part.
        unsafe { (kernels.attend_chunk)(job, chunk, scratch, parts) };
    }
    for (query, out) in merged.chunks_exact_mut(size).enumerate() {
        let seen = chunks.iter().enumerate().filter(|(chunk, _)| query >= job.first(*chunk));
        let parts: Vec<f32> = seen.flat_map(|(_, parts)| &parts[query * part..][..part]).copied().collect();
        // SAFETY: made for this processor.
        unsafe { (kernels.merge)(&parts, out) };
    }
    merged
}

#[test]
fn attention_is_the_definition_and_the_same_on_every_instruction_set() {
    let mut random = Random(3);
    for (size, group, half) in [
        (16, 5, true),
        (64, 2, true),
        (64, 3, false),
        (64, 7, true),
        (80, 1, true),
        (80, 3, true),
        (112, 1, false),
        (128, 8, false),
        (144, 2, false),
        (attention::HEAD_MAX, attention::GROUP_MAX, true),
    ] {
        let shape = Shape { layers: 2, kv_heads: 2, head_size: size, half };
        for (position, rows) in [(0, 1), (0, 4), (5, 3), (254, 4), (511, 1), (600, 2)] {
            let length = position + rows;
            let keys: Vec<Vec<f32>> = (0..length).map(|_| random.floats(size)).collect();
            let values: Vec<Vec<f32>> = (0..length).map(|_| random.floats(size)).collect();
            let q = random.floats(rows * group * size);
            let results: Vec<Vec<f32>> = Kernels::all()
                .into_iter()
                .map(|kernels| {
                    let mut cache = Cache::new(shape);
                    cache.reserve(0, length);
                    let chunks = cache.chunks();
                    for t in 0..length {
                        // SAFETY: reserved above, written by this thread alone.
                        unsafe { (kernels.append)(cache.pointer(t / super::cache::CHUNK), shape, 1, 1, t, &keys[t], &values[t]) };
                    }
                    let mut out = vec![0.0; q.len()];
                    let job = Job { chunks: &chunks, shape, layer: 1, kv_head: 1, group, position, rows, q: &q, q_stride: group * size };
                    let mut scratch = Scratch::default();
                    // SAFETY: made for this processor; `q` and `out` have the job's rows.
                    unsafe { (kernels.attend)(&job, &mut scratch, out.as_mut_ptr(), group * size) };
                    assert_eq!(out, by_chunks(kernels, &job, &mut scratch), "chunk by chunk is something else");
                    out
                })
                .collect();
            assert!(results.iter().all(|result| result == &results[0]), "instruction sets differ");
            for query in 0..rows * group {
                let seen = position + query / group + 1;
                let want = attention(&q[query * size..(query + 1) * size], &keys[..seen], &values[..seen]);
                for (got, want) in results[0][query * size..].iter().zip(want) {
                    let tolerance = if half { 5e-3 } else { 1e-5 };
                    assert!((f64::from(*got) - want).abs() < tolerance, "size {size} position {position}: {got} is not {want}");
                }
            }
        }
    }
    const { assert!(attention::ROWS >= 4, "the shapes above go with four rows") };
}

#[test]
fn norm_and_gate_are_the_definitions() {
    let mut random = Random(4);
    let (x, weight) = (random.floats(96), random.floats(96));
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 96.0;
    for kernels in Kernels::all() {
        let mut y = vec![0.0; 96];
        // SAFETY: made for this processor; one length.
        unsafe { (kernels.norm)(&x, &weight, 1e-5, &mut y) };
        let mut gate: Vec<f32> = x.iter().map(|x| x * 100.0).collect();
        // SAFETY: as above.
        unsafe { (kernels.gate_silu)(&mut gate, &weight) };
        for i in 0..96 {
            let (x, w) = (f64::from(x[i]), f64::from(weight[i]));
            assert!((f64::from(y[i]) - x / (mean + 1e-5).sqrt() * w).abs() < 1e-5);
            let g = x * 100.0;
            assert!((f64::from(gate[i]) - g / (1.0 + (-g).exp()) * w).abs() < 1e-4, "{}", gate[i]);
        }
    }
}

#[test]
fn what_is_between_products_is_the_same_on_every_instruction_set() {
    let mut random = Random(5);
    let (x, y) = (random.floats(96).iter().map(|x| x * 30.0).collect::<Vec<_>>(), random.floats(96));
    let all = Kernels::all().into_iter().map(|kernels| {
        let (mut norm, mut gate, mut sum, mut head) = (vec![0.0; 96], x.clone(), x.clone(), x.clone());
        // SAFETY: made for this processor; one length, and half of it.
        unsafe {
            (kernels.norm)(&x, &y, 1e-5, &mut norm);
            (kernels.gate_silu)(&mut gate, &y);
            (kernels.add)(&mut sum, &y);
            (kernels.rotate)(&mut head, &y[..48], &y[48..], 0.3);
        }
        [norm, gate, sum, head]
    });
    let all: Vec<_> = all.collect();
    let [_, _, sum, head] = &all[0];
    for i in 0..48 {
        let [a, b, cos, sin] = [x[i], x[i + 48], y[i], y[i + 48]].map(f64::from);
        assert!((f64::from(head[i]) - (a * cos - b * sin) * 0.3).abs() < 1e-5);
        assert!((f64::from(head[i + 48]) - (b * cos + a * sin) * 0.3).abs() < 1e-5);
        assert_eq!(sum[i], x[i] + y[i]);
    }
    assert!(all.iter().all(|results| results == &all[0]), "instruction sets differ");
}

#[test]
fn the_kernels_are_those_that_the_environment_names() {
    let wanted = std::env::var("SOUFFLEUR_ISA").unwrap_or_else(|_| Kernels::all()[0].name.to_owned());
    assert_eq!(Kernels::choose().expect("they run here").name, wanted);
}
