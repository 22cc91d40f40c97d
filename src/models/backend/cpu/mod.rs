//! The processor as a backend: packed weights, SIMD kernels, a fixed thread pool.

mod attend;
mod attention;
#[cfg(test)]
mod block_tests;
mod buffer;
mod cache;
mod chunk;
mod forms;
mod headers;
mod isa;
mod kernels;
mod matmul;
mod pack;
mod pool;
mod product;
mod quants;
mod rope;
mod rows;
mod tensor;
#[cfg(test)]
mod tests;
mod threads;

pub use cache::Cache;
pub use pack::Packed;
pub use tensor::Tensor;

use super::{Backend, Norm, SampleRequest, Span};
use crate::models::network::DecoderSpec;
use crate::models::weights::Matrix;
use crate::models::{Activations, Error, Result, Sampled};
use attend::Chunks;
use buffer::Arena;
use cache::Shape;
use kernels::Kernels;
use quants::Quants;

use pool::Pool;
use rope::Rope;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use tensor::TensorAllocator;

/// Rows from which the work between two products is worth sharing among threads.
const ROWS_SHARED: usize = 8;

/// A thread's own memory: what attention needs, and the results of a piece.
#[derive(Default)]
struct Scratch {
    attention: attention::Scratch,
    out: Vec<f32>,
}

pub struct Cpu {
    kernels: &'static Kernels,
    pool: Pool<Scratch>,
    activations: Activations,
    rope: Rope,
    weights: Arena,
    tensors: TensorAllocator,
    /// Activations in eight bits, kept for the next product's.
    quants: Vec<Arc<Quants>>,
    /// The caches of the step in hand.
    step: Option<Arc<Chunks>>,
}

impl Cpu {
    /// `threads: 0` takes one for each core that this process may use.
    pub fn new(spec: &DecoderSpec, threads: usize, activations: Activations) -> Result<Self> {
        Self::with_kernels(spec, threads, activations, Kernels::choose()?)
    }

    fn with_kernels(spec: &DecoderSpec, threads: usize, activations: Activations, kernels: &'static Kernels) -> Result<Self> {
        let group = spec.heads / spec.kv_heads;
        if !spec.head_dim.is_multiple_of(16) || spec.head_dim > attention::HEAD_MAX || group > attention::GROUP_MAX {
            let reason = format!(
                "heads of {} in groups of {group}; supported are multiples of 16 up to {}, in groups up to {}",
                spec.head_dim,
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
            rope: Rope::new(spec.rope_theta, spec.head_dim),
            weights: Arena::default(),
            tensors: TensorAllocator::default(),
            quants: Vec::new(),
            step: None,
        })
    }

    /// 0 is one for each core that this process may use.
    pub fn threads_for(wanted: usize) -> usize {
        if wanted == 0 { threads::cores() } else { wanted }
    }

    /// What `doctor` and `status` call this backend, without making one.
    pub fn describe() -> Result<String> {
        Ok(format!("cpu ({})", Kernels::choose()?.name))
    }

    /// Whether the slow reference kernels run.
    pub fn is_reference() -> bool {
        Kernels::choose().is_ok_and(Kernels::is_reference)
    }
}

/// Calls `work` for every row, on all threads when there are many.
fn each_row(pool: &mut Pool<Scratch>, rows: usize, work: &(dyn Fn(usize) + Sync)) {
    if rows < ROWS_SHARED {
        (0..rows).for_each(work);
    } else {
        pool.run(rows.div_ceil(4), &|piece, _| (piece * 4..rows.min(piece * 4 + 4)).for_each(work));
    }
}

impl Backend for Cpu {
    type Matrix = Arc<Packed>;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type Cache = Cache;

    fn matrix(&mut self, from: &Matrix<'_>) -> Result<Arc<Packed>> {
        Packed::new(from, &mut self.weights, &mut self.pool).map(Arc::new)
    }

    fn matrix_bytes(from: &Matrix<'_>) -> usize {
        Packed::bytes(from)
    }

    fn vector(&mut self, from: Vec<f32>) -> Result<Vec<f32>> {
        Ok(from)
    }

    fn cache(&mut self, spec: &DecoderSpec) -> Cache {
        let half = self.activations == Activations::Int8;
        Cache::new(Shape { layers: spec.layers, kv_heads: spec.kv_heads, head_size: spec.head_dim, half })
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

    fn embed(&mut self, table: &Arc<Packed>, spans: &[Span<'_, Cache>]) -> Tensor {
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let mut x = self.tensors.alloc(tokens.len(), table.columns);
        let (kernels, out) = (self.kernels, x.writer());
        each_row(&mut self.pool, tokens.len(), &|row| {
            // SAFETY: each row is written once.
            unsafe { (kernels.row)(table, tokens[row] as usize, out.slice(row * table.columns, table.columns)) };
        });
        x
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm<Self>) -> Tensor {
        let mut y = self.tensors.alloc(x.rows, x.width);
        let out = y.writer();
        let kernels = self.kernels;
        each_row(&mut self.pool, x.rows, &|row| {
            // SAFETY: each row is written once; widths are multiples of 32, checked when the weights were packed.
            unsafe { (kernels.norm)(x.row(row), &norm.weight, norm.epsilon, out.slice(row * x.width, x.width)) }
        });
        y
    }

    fn project(&mut self, x: &Tensor, by: &[&Arc<Packed>]) -> Vec<Tensor> {
        self.products(x, by)
    }

    fn attend(&mut self, qkv: [Tensor; 3], layer: usize, spec: &DecoderSpec, spans: &mut [Span<'_, Cache>]) -> Tensor {
        self.attention(qkv, layer, spec, spans)
    }

    fn gate(&mut self, mut gate: Tensor, up: Tensor) -> Tensor {
        let (kernels, width, out) = (self.kernels, gate.width, gate.writer());
        each_row(&mut self.pool, up.rows, &|row| {
            // SAFETY: each row is written once; widths are multiples of 32.
            unsafe { (kernels.gate_silu)(out.slice(row * width, width), up.row(row)) }
        });
        gate
    }

    fn bias(&mut self, mut x: Tensor, by: &Vec<f32>) -> Tensor {
        let (kernels, width, rows, out) = (self.kernels, x.width, x.rows, x.writer());
        each_row(&mut self.pool, rows, &|row| {
            // SAFETY: each row is written once; a bias is as long as its weight has rows, whole heads of 16.
            unsafe { (kernels.add)(out.slice(row * width, width), by) }
        });
        x
    }

    fn add(&mut self, mut x: Tensor, y: Tensor) -> Tensor {
        let (kernels, width, out) = (self.kernels, x.width, x.writer());
        each_row(&mut self.pool, y.rows, &|row| {
            // SAFETY: each row is written once; widths are multiples of 32.
            unsafe { (kernels.add)(out.slice(row * width, width), y.row(row)) }
        });
        x
    }

    fn select(&mut self, x: Tensor, rows: &[usize]) -> Tensor {
        let mut y = self.tensors.alloc(rows.len(), x.width);
        Arc::make_mut(&mut y.data).chunks_exact_mut(x.width).zip(rows).for_each(|(to, &row)| to.copy_from_slice(x.row(row)));
        y
    }

    fn sample(&mut self, mut logits: Tensor, draws: &mut [SampleRequest<'_>]) -> Vec<Result<Sampled>> {
        let rows = Arc::make_mut(&mut logits.data).chunks_exact_mut(logits.width.max(1));
        // Each is taken by the one thread that has its row.
        let choices: Vec<_> = draws.iter_mut().zip(rows).map(|(draw, row)| Mutex::new((draw, row, None))).collect();
        self.pool.run(choices.len(), &|index, _| {
            let mut choice = choices[index].lock().expect("the wall below is inside");
            let (draw, row, sampled) = &mut *choice;
            // The wall around one request's processors and sampler: what panics here ends that request alone.
            let wall = catch_unwind(AssertUnwindSafe(|| draw.sampler.sample(row, draw.tokens)));
            *sampled = Some(wall.map_err(|_| Error::SamplerPanicked));
        });
        let sampled = |choice: Mutex<(_, _, Option<Result<Sampled>>)>| choice.into_inner().expect("as above").2;
        choices.into_iter().map(|choice| sampled(choice).expect("every piece was run")).collect()
    }

    fn read(&mut self, x: &Tensor) -> Vec<Vec<f32>> {
        (0..x.rows).map(|row| x.row(row).to_vec()).collect()
    }
}
