//! The processor as a backend: packed weights, SIMD kernels, a fixed thread pool.

mod attention;
#[cfg(test)]
mod block_tests;
mod buffer;
mod cache;
mod forms;
mod isa;
mod kernels;
mod matmul;
mod pack;
mod pool;
mod rope;
mod rows;
mod tensor;
#[cfg(test)]
mod tests;

pub use cache::Cache;
pub use pack::Packed;
pub use tensor::Tensor;

use super::{Backend, Draw, Norm, Span};
use crate::models::network::DecoderSpec;
use crate::models::weights::Matrix;
use crate::models::{Activations, Error, Result, Sampled};
use attention::{Job, Scratch};
use buffer::Arena;
use cache::{CHUNK, Shape};
use isa::LANES;
use kernels::Kernels;
use matmul::{Quants, QuantsOut};

use pool::Pool;
use rope::Rope;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use tensor::Shared;

/// Rows from which the work between two products is worth sharing among threads.
const ROWS_SHARED: usize = 8;
/// Bytes of weights in one piece of a product: a few microseconds of reading.
const PIECE_BYTES: usize = 32 << 10;

pub struct Cpu {
    kernels: &'static Kernels,
    pool: Pool,
    activations: Activations,
    rope: Rope,
    weights: Arena,
    /// Activations in eight bits, kept for the next product's.
    quants: Vec<Quants>,
    /// One for each thread.
    scratch: Vec<Mutex<(Scratch, Vec<f32>)>>,
}

impl Cpu {
    /// `threads: 0` takes one for each processor this process may use.
    pub fn new(spec: &DecoderSpec, threads: usize, activations: Activations) -> Result<Self> {
        Self::with_kernels(spec, threads, activations, Kernels::choose()?)
    }

    fn with_kernels(spec: &DecoderSpec, threads: usize, activations: Activations, kernels: &'static Kernels) -> Result<Self> {
        let group = spec.heads / spec.kv_heads;
        if !spec.head_size.is_multiple_of(16) || spec.head_size > attention::HEAD_MAX || group > attention::GROUP_MAX {
            let reason = format!(
                "heads of {} in groups of {group}; supported are multiples of 16 up to {}, in groups up to {}",
                spec.head_size,
                attention::HEAD_MAX,
                attention::GROUP_MAX
            );
            return Err(Error::Unsupported(reason));
        }
        let threads = Self::threads_for(threads);
        Ok(Self {
            kernels,
            pool: Pool::new(threads),
            activations,
            rope: Rope::new(spec.rope_base, spec.head_size),
            weights: Arena::default(),
            quants: Vec::new(),
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
        })
    }

    /// 0 is one for each processor this process may use.
    pub fn threads_for(wanted: usize) -> usize {
        if wanted == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { wanted }
    }

    /// What `doctor` and `status` call this backend, without making one.
    pub fn describe() -> Result<String> {
        Ok(format!("cpu ({})", Kernels::choose()?.name))
    }

    /// Whether the slow reference kernels run.
    pub fn is_reference() -> bool {
        Kernels::choose().is_ok_and(Kernels::is_reference)
    }

    fn quantize(&mut self, x: &Tensor, group: usize) -> Quants {
        let mut quants = self.quants.pop().unwrap_or_default();
        quants.resize(x.rows, x.width, group);
        let out = QuantsOut { rows: x.rows, q: quants.q.as_mut_ptr(), scale: quants.scale.as_mut_ptr(), sum: quants.sum.as_mut_ptr() };
        let kernels = self.kernels;
        each_row(&mut self.pool, x.rows, &|row| {
            // SAFETY: `quants` has room for every row, and each row is written once.
            unsafe { (kernels.quantize)(x.row(row), row, group, out) }
        });
        quants
    }
}

/// Calls `work` for every row, on all threads when there are many.
fn each_row(pool: &mut Pool, rows: usize, work: &(dyn Fn(usize) + Sync)) {
    if rows < ROWS_SHARED {
        (0..rows).for_each(work);
    } else {
        pool.run(rows.div_ceil(4), &|piece, _| (piece * 4..rows.min(piece * 4 + 4)).for_each(work));
    }
}

impl Backend for Cpu {
    type Matrix = Packed;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type Cache = Cache;

    fn matrix(&mut self, from: &Matrix<'_>) -> Result<Packed> {
        Packed::new(from, &mut self.weights, &mut self.pool)
    }

    fn matrix_bytes(from: &Matrix<'_>) -> usize {
        Packed::bytes(from)
    }

    fn vector(&mut self, from: Vec<f32>) -> Result<Vec<f32>> {
        Ok(from)
    }

    fn cache(&mut self, spec: &DecoderSpec) -> Cache {
        let half = self.activations == Activations::Int8;
        Cache::new(Shape { layers: spec.layers, kv_heads: spec.kv_heads, head_size: spec.head_size, half })
    }

    fn fork(&mut self, cache: &Cache, length: usize) -> Cache {
        cache.fork(length)
    }

    fn truncate(&mut self, cache: &mut Cache, length: usize) {
        cache.truncate(length);
    }

    fn cache_bytes(&self, cache: &Cache) -> usize {
        cache.bytes()
    }

    fn embed(&mut self, table: &Packed, spans: &[Span<'_, Cache>]) -> Tensor {
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let mut x = Tensor::new(tokens.len(), table.columns);
        let (kernels, out) = (self.kernels, Shared(x.data.as_mut_ptr()));
        each_row(&mut self.pool, tokens.len(), &|row| {
            // SAFETY: each row is written once.
            unsafe { (kernels.row)(table, tokens[row] as usize, out.part(row * table.columns, table.columns)) };
        });
        x
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm<Self>) -> Tensor {
        let mut y = Tensor::new(x.rows, x.width);
        let out = Shared(y.data.as_mut_ptr());
        let kernels = self.kernels;
        each_row(&mut self.pool, x.rows, &|row| {
            // SAFETY: each row is written once; widths are multiples of 32, checked when the weights were packed.
            unsafe { (kernels.norm)(x.row(row), &norm.weight, norm.epsilon, out.part(row * x.width, x.width)) }
        });
        y
    }

    fn project(&mut self, x: &Tensor, by: &[&Packed]) -> Vec<Tensor> {
        let mut ys: Vec<Tensor> = by.iter().map(|weight| Tensor::new(x.rows, weight.rows)).collect();
        if x.rows == 0 {
            return ys;
        }
        // One quantization for each group size among the weights: nearly always one in all.
        let activations = self.activations;
        let int8 = |weight: &Packed| weight.kind.group().filter(|_| activations == Activations::Int8);
        let mut groups: Vec<usize> = by.iter().copied().filter_map(int8).collect();
        groups.sort_unstable();
        groups.dedup();
        let quants: Vec<(usize, Quants)> = groups.into_iter().map(|group| (group, self.quantize(x, group))).collect();
        // `None` is the f32 activations themselves.
        let input = |weight: &&Packed| quants.iter().find(|(group, _)| int8(weight) == Some(*group)).map(|(_, quants)| quants);
        let inputs: Vec<Option<&Quants>> = by.iter().map(input).collect();
        // The pieces of all weights in one row, so that one operation has them all.
        let mut pieces: Vec<(usize, usize, usize)> = Vec::new();
        for (index, weight) in by.iter().enumerate() {
            let slabs = (PIECE_BYTES / weight.slab_bytes()).max(1);
            pieces.extend((0..weight.slabs()).step_by(slabs).map(|first| (index, first, (first + slabs).min(weight.slabs()))));
        }
        let outs: Vec<Shared> = ys.iter_mut().map(|y| Shared(y.data.as_mut_ptr())).collect();
        let (kernels, scratch, rows) = (self.kernels, &self.scratch, x.rows);
        self.pool.run(pieces.len(), &|piece, thread| {
            let (index, first, end) = pieces[piece];
            let weight = by[index];
            let mut scratch = scratch[thread].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let sums = &mut scratch.1;
            sums.resize(rows * LANES, 0.0);
            for slab in first..end {
                // SAFETY: `sums` has eight floats a row.
                unsafe {
                    match inputs[index] {
                        Some(quants) => (kernels.slab_int8)(weight, slab, quants, sums.as_mut_ptr()),
                        None => (kernels.slab_f32)(weight, slab, &x.data, rows, sums.as_mut_ptr()),
                    }
                }
                let width = LANES.min(weight.rows - slab * LANES);
                for (row, sums) in sums.as_chunks::<LANES>().0.iter().enumerate() {
                    // SAFETY: this slab's outputs of every row are this piece's.
                    let out = unsafe { outs[index].part(row * weight.rows + slab * LANES, width) };
                    match <&mut [f32; LANES]>::try_from(&mut *out) {
                        Ok(out) => *out = *sums,
                        Err(_) => out.copy_from_slice(&sums[..width]),
                    }
                }
            }
        });
        self.quants.extend(quants.into_iter().map(|(_, quants)| quants));
        ys
    }

    fn attend(&mut self, [mut q, mut k, v]: [Tensor; 3], layer: usize, spec: &DecoderSpec, spans: &mut [Span<'_, Cache>]) -> Tensor {
        let (size, group) = (spec.head_size, spec.heads / spec.kv_heads);
        // Where every row stands: its span and its position.
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut chunks: Vec<Vec<*mut u8>> = Vec::new();
        for (index, span) in spans.iter_mut().enumerate() {
            if layer == 0 {
                span.cache.reserve(span.position, span.tokens.len());
            }
            chunks.push(span.cache.pointers());
            places.extend((0..span.tokens.len()).map(|i| (index, span.position + i)));
        }
        self.rope.reach(places.iter().map(|place| place.1 + 1).max().unwrap_or(0));
        let Some(shape) = spans.first().map(|span| span.cache.shape) else { return q };
        let chunks = Chunks(chunks);

        let (kernels, rows) = (self.kernels, q.rows);
        let rope = &self.rope;
        let (q_out, k_out) = (Shared(q.data.as_mut_ptr()), Shared(k.data.as_mut_ptr()));
        let scale = 1.0 / (size as f32).sqrt();
        each_row(&mut self.pool, rows, &|row| {
            let (span, position) = places[row];
            let (cos, sin) = rope.at(position);
            // SAFETY: a row belongs to one piece, and its position in the cache to this row.
            unsafe {
                for head in 0..spec.heads {
                    (kernels.rotate)(q_out.part((row * spec.heads + head) * size, size), cos, sin, scale);
                }
                for head in 0..spec.kv_heads {
                    let key = k_out.part((row * spec.kv_heads + head) * size, size);
                    (kernels.rotate)(key, cos, sin, 1.0);
                    let value = &v.row(row)[head * size..(head + 1) * size];
                    (kernels.append)(chunks.get(span)[position / CHUNK], shape, layer, head, position, key, value);
                }
            }
        });

        // Tiles of rows of one span, times key-value heads.
        let mut tiles: Vec<(usize, usize, usize)> = Vec::new();
        let mut first = 0;
        for (index, span) in spans.iter().enumerate() {
            let end = first + span.tokens.len();
            tiles.extend((first..end).step_by(attention::ROWS).map(|row| (index, row, attention::ROWS.min(end - row))));
            first = end;
        }
        let mut y = Tensor::new(rows, spec.heads * size);
        let (q_in, out, scratch) = (Shared(q.data.as_mut_ptr()), Shared(y.data.as_mut_ptr()), &self.scratch);
        self.pool.run(tiles.len() * spec.kv_heads, &|piece, thread| {
            let (span, row, rows) = tiles[piece / spec.kv_heads];
            let kv_head = piece % spec.kv_heads;
            let at = row * spec.heads * size + kv_head * group * size;
            let mut scratch = scratch[thread].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // SAFETY: the tile's rows and this group's heads are this piece's; all keys and values were appended
            // by the operation before.
            unsafe {
                let (q, out) = (q_in.part(at, 0).as_ptr(), out.part(at, 0).as_mut_ptr());
                let job = Job {
                    chunks: chunks.get(span),
                    shape,
                    layer,
                    kv_head,
                    group,
                    position: places[row].1,
                    rows,
                    q,
                    out,
                    stride: spec.heads * size,
                };
                (kernels.attend)(&job, &mut scratch.0);
            }
        });
        y
    }

    fn gate(&mut self, mut gate: Tensor, up: Tensor) -> Tensor {
        let (kernels, width, out) = (self.kernels, gate.width, Shared(gate.data.as_mut_ptr()));
        each_row(&mut self.pool, up.rows, &|row| {
            // SAFETY: each row is written once; widths are multiples of 32.
            unsafe { (kernels.gate_silu)(out.part(row * width, width), up.row(row)) }
        });
        gate
    }

    fn bias(&mut self, mut x: Tensor, by: &Vec<f32>) -> Tensor {
        let (kernels, width, rows, out) = (self.kernels, x.width, x.rows, Shared(x.data.as_mut_ptr()));
        each_row(&mut self.pool, rows, &|row| {
            // SAFETY: each row is written once; a bias is as long as its weight has rows, whole heads of 16.
            unsafe { (kernels.add)(out.part(row * width, width), by) }
        });
        x
    }

    fn add(&mut self, mut x: Tensor, y: Tensor) -> Tensor {
        let (kernels, width, out) = (self.kernels, x.width, Shared(x.data.as_mut_ptr()));
        each_row(&mut self.pool, y.rows, &|row| {
            // SAFETY: each row is written once; widths are multiples of 32.
            unsafe { (kernels.add)(out.part(row * width, width), y.row(row)) }
        });
        x
    }

    fn select(&mut self, x: Tensor, rows: &[usize]) -> Tensor {
        let mut y = Tensor::new(rows.len(), x.width);
        y.data.chunks_exact_mut(x.width).zip(rows).for_each(|(to, &row)| to.copy_from_slice(x.row(row)));
        y
    }

    fn sample(&mut self, mut logits: Tensor, draws: &mut [Draw<'_>]) -> Vec<Result<Sampled>> {
        let rows = logits.data.chunks_exact_mut(logits.width.max(1));
        // Each is taken by the one thread that has its row.
        let choices: Vec<_> = draws.iter_mut().zip(rows).map(|(draw, row)| Mutex::new((draw, row, None))).collect();
        self.pool.run(choices.len(), &|index, _| {
            let mut choice = choices[index].lock().expect("the wall below is inside");
            let (draw, row, sampled) = &mut *choice;
            // The wall around one request's processors and sampler: what panics here ends that request alone.
            let wall = catch_unwind(AssertUnwindSafe(|| draw.sampler.sample(row, draw.tokens)));
            *sampled = Some(wall.map_err(|panic| Error::SamplerPanicked(crate::models::panic_text(&*panic))));
        });
        let sampled = |choice: Mutex<(_, _, Option<Result<Sampled>>)>| choice.into_inner().expect("as above").2;
        choices.into_iter().map(|choice| sampled(choice).expect("every piece was run")).collect()
    }

    fn read(&mut self, x: &Tensor) -> Vec<Vec<f32>> {
        (0..x.rows).map(|row| x.row(row).to_vec()).collect()
    }
}

/// Every span's chunks, by pointer.
struct Chunks(Vec<Vec<*mut u8>>);
// SAFETY: within one operation, threads write disjoint positions or only read.
unsafe impl Sync for Chunks {}

impl Chunks {
    fn get(&self, span: usize) -> &[*mut u8] {
        &self.0[span]
    }
}
