//! The processor as a backend: packed weights, SIMD kernels, a fixed thread pool.

mod buffer;
mod isa;
mod kernels;
mod kv_cache;
mod ops;
mod pool;
mod rope;
mod tensor;
#[cfg(test)]
mod tests;
mod threads;
mod weights;

pub use kv_cache::Cache;
pub use ops::linear::Linear;
pub use tensor::Tensor;

use super::{Backend, BackendInfo, Choice, HostTokens, Input, LinearPart, SampleRequest, Span};
use crate::models::network::{Activation, Attention, AttentionSpec, DecoderSpec, NormSpec};
use crate::models::weights::{Matrix, free_memory};
use crate::models::{Activations, CpuSettings, Error, Result};
use buffer::{Arena, Buffer};
use isa::LANES;
use kernels::quantize::QuantizedActivations;
use kernels::{Kernels, attention};
use kv_cache::KvShape;
use pool::Pool;
use rope::Rope;
use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use tensor::TensorAllocator;
use weights::pack::Packed;

/// Rows from which elementwise work is divided among threads.
const ROWS_PARALLEL_MIN: usize = 8;

/// Memory of one thread: what attention needs, and the results of a task.
#[derive(Default)]
struct Scratch {
    attention: attention::AttentionScratch,
    out: Vec<f32>,
}

pub struct Cpu {
    kernels: &'static Kernels,
    pool: Pool<Scratch>,
    activations: Activations,
    rope: Rope,
    kv_shape: KvShape,
    weights: Arena,
    tensors: TensorAllocator,
    /// Buffers of quantized activations, kept for the next projection.
    quantized: Vec<Arc<QuantizedActivations>>,
}

/// The weight of an RMS norm.
pub struct Norm {
    weight: Vec<f32>,
    epsilon: f32,
}

pub struct Step {
    /// The KV pages of every span's cache.
    pages: Arc<Vec<Vec<Arc<Buffer>>>>,
    /// Each layer attends once, in order: a second time, its keys could be written while a straggler of the first reads them.
    next_layer: Cell<usize>,
}

impl Cpu {
    fn with_kernels(spec: &DecoderSpec, settings: &CpuSettings, kernels: &'static Kernels) -> Result<Self> {
        supported(&spec.attention).and_then(|()| supported_activation(spec.mlp.activation)).map_err(Error::Unsupported)?;
        let kv_shape = kv_shape(spec, settings);
        if kv_shape.checked_page_bytes().is_none() {
            return Err(Error::Unsupported(format!("{} layers: a page of keys and values is too large to address", spec.layers)));
        }
        Ok(Self {
            kernels,
            pool: Pool::new(thread_count(settings)),
            activations: settings.activations,
            rope: Rope::new(spec.attention.rope, spec.attention.head_dim),
            kv_shape,
            weights: Arena::default(),
            tensors: TensorAllocator::default(),
            quantized: Vec::new(),
        })
    }
}

/// Whether the kernels can compute this attention.
fn supported(attention: &AttentionSpec) -> std::result::Result<(), String> {
    let AttentionSpec { heads, kv_heads, head_dim, window, softcap, .. } = attention;
    let group = heads / kv_heads;
    if !head_dim.is_multiple_of(16) || *head_dim > attention::HEAD_DIM_MAX || group > attention::GROUP_SIZE_MAX {
        let (head_max, group_max) = (attention::HEAD_DIM_MAX, attention::GROUP_SIZE_MAX);
        return Err(format!(
            "heads of {head_dim} dimensions in groups of {group}; supported are multiples of 16 up to {head_max}, in groups up to {group_max}"
        ));
    }
    if let Some(window) = window {
        return Err(format!("a sliding window of {window} positions; the cpu backend attends to all positions"));
    }
    if let Some(softcap) = softcap {
        return Err(format!("attention scores capped at {softcap}; the cpu backend does not cap them"));
    }
    Ok(())
}

fn supported_activation(activation: Activation) -> std::result::Result<(), String> {
    match activation {
        Activation::Silu => Ok(()),
        Activation::GeluTanh => Err("activation GELU; the cpu backend has SiLU only".into()),
    }
}

fn thread_count(settings: &CpuSettings) -> usize {
    if settings.threads == 0 { threads::cores() } else { settings.threads as usize }
}

/// Keys and values are f16 beside int8 activations, f32 beside f32 ones.
fn kv_shape(spec: &DecoderSpec, settings: &CpuSettings) -> KvShape {
    let AttentionSpec { kv_heads, head_dim, .. } = spec.attention;
    KvShape { layers: spec.layers, kv_heads, head_dim, half: settings.activations == Activations::Int8 }
}

/// Calls `work` for every row, on all threads if there are many.
fn each_row(pool: &mut Pool<Scratch>, rows: usize, work: &(dyn Fn(usize) + Sync)) {
    if rows < ROWS_PARALLEL_MIN {
        (0..rows).for_each(work);
    } else {
        pool.run(rows.div_ceil(4), &|task, _| (task * 4..rows.min(task * 4 + 4)).for_each(work));
    }
}

impl Backend for Cpu {
    type Settings = CpuSettings;
    type Linear = Linear;
    type Norm = Norm;
    type Tensor = Tensor;
    type Cache = Cache;
    type Tokens = HostTokens;
    type Step = Step;

    fn open(spec: &DecoderSpec, settings: &CpuSettings) -> Result<Self> {
        Self::with_kernels(spec, settings, Kernels::choose()?)
    }

    fn describe(settings: &CpuSettings) -> Result<BackendInfo> {
        let kernels = Kernels::choose()?;
        let name = format!("cpu ({})", kernels.name);
        Ok(BackendInfo { name, threads: thread_count(settings), is_reference: kernels.is_reference() })
    }

    fn free_memory() -> Option<u64> {
        free_memory()
    }

    fn kv_bytes_per_token(spec: &DecoderSpec, settings: &CpuSettings) -> u64 {
        kv_shape(spec, settings).token_bytes() as u64
    }

    fn weight_bytes(weight: &Matrix<'_>) -> usize {
        Packed::bytes(weight)
    }

    fn runs_ahead(&self) -> bool {
        // Every operation computes before it returns, so nothing is gained by submitting a step early.
        false
    }

    fn linear(&mut self, parts: Vec<LinearPart<'_>>) -> Result<Linear> {
        Linear::new(parts, &mut self.weights, &mut self.pool)
    }

    fn norm_weight(&mut self, weight: Vec<f32>, NormSpec { epsilon }: NormSpec) -> Result<Norm> {
        Ok(Norm { weight, epsilon })
    }

    fn cache(&mut self) -> Cache {
        Cache::new(self.kv_shape)
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

    fn begin(&mut self, spans: &mut [Span<'_, Self>]) -> Step {
        for span in spans.iter_mut() {
            assert_eq!(span.cache.shape, self.kv_shape, "the cache is of another network or of other settings");
            let rows = span.rows();
            span.cache.reserve(span.position, rows);
        }
        let end = spans.iter().map(Span::end).max().unwrap_or(0);
        self.rope.extend_to(end);
        Step { pages: Arc::new(spans.iter().map(|span| span.cache.pages()).collect()), next_layer: Cell::new(0) }
    }

    fn embed(&mut self, table: &Linear, spans: &[Span<'_, Self>]) -> Tensor {
        let table = table.single();
        let mut ids = Vec::new();
        for span in spans {
            match &span.input {
                Input::Ids(list) => ids.extend_from_slice(list),
                Input::Sampled(tokens, row) => ids.push(tokens.id(*row)),
            }
        }
        assert!(ids.iter().all(|id| (*id as usize) < table.rows), "a token id is outside of the embedding table");
        let mut x = self.tensors.alloc(ids.len(), table.columns);
        let (kernels, out) = (self.kernels, x.writer());
        each_row(&mut self.pool, ids.len(), &|row| {
            // SAFETY: every id is a row of the table, and each row of `x` is written once.
            unsafe { (kernels.row)(table, ids[row] as usize, out.slice(row * table.columns, table.columns)) };
        });
        x
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm) -> Tensor {
        assert_eq!(x.width, norm.weight.len(), "the norm's weight is as long as a row");
        assert_whole_vectors(x.width);
        let mut y = self.tensors.alloc(x.rows, x.width);
        let out = y.writer();
        let kernels = self.kernels;
        each_row(&mut self.pool, x.rows, &|row| {
            // SAFETY: row, weight and result have one length, a multiple of 8; each row is written once.
            unsafe { (kernels.norm)(x.row(row), &norm.weight, norm.epsilon, out.slice(row * x.width, x.width)) }
        });
        y
    }

    fn project<const N: usize>(&mut self, x: &Tensor, by: &Linear) -> [Tensor; N] {
        let tensors = self.project_all(x, by);
        tensors.try_into().unwrap_or_else(|tensors: Vec<Tensor>| panic!("{} parts are projected to {N} tensors", tensors.len()))
    }

    fn attend(&mut self, qkv: [Tensor; 3], attention: &Attention<Norm>, layer: usize, step: &Step, spans: &mut [Span<'_, Self>]) -> Tensor {
        self.attention(qkv, attention, layer, step, spans)
    }

    fn gate(&mut self, mut gate: Tensor, up: Tensor, activation: Activation) -> Tensor {
        supported_activation(activation).expect("`open` accepts no other");
        assert_eq!((gate.rows, gate.width), (up.rows, up.width), "gate and up have one shape");
        assert_whole_vectors(gate.width);
        let (kernels, width, out) = (self.kernels, gate.width, gate.writer());
        each_row(&mut self.pool, up.rows, &|row| {
            // SAFETY: both rows have one length, a multiple of 8; each row is written once.
            unsafe { (kernels.gate_silu)(out.slice(row * width, width), up.row(row)) }
        });
        gate
    }

    fn add(&mut self, mut x: Tensor, y: Tensor) -> Tensor {
        assert_eq!((x.rows, x.width), (y.rows, y.width), "both summands have one shape");
        assert_whole_vectors(x.width);
        let (kernels, width, out) = (self.kernels, x.width, x.writer());
        each_row(&mut self.pool, y.rows, &|row| {
            // SAFETY: both rows have one length, a multiple of 8; each row is written once.
            unsafe { (kernels.add)(out.slice(row * width, width), y.row(row)) }
        });
        x
    }

    fn select(&mut self, x: Tensor, rows: &[usize]) -> Tensor {
        let mut y = self.tensors.alloc(rows.len(), x.width);
        if x.width > 0 {
            Arc::make_mut(&mut y.data).chunks_exact_mut(x.width).zip(rows).for_each(|(to, &row)| to.copy_from_slice(x.row(row)));
        }
        y
    }

    fn sample(&mut self, mut logits: Tensor, requests: &mut [SampleRequest<'_, Self>]) -> HostTokens {
        assert_eq!(logits.rows, requests.len(), "one request for each row of logits");
        let rows = Arc::make_mut(&mut logits.data).chunks_exact_mut(logits.width.max(1));
        // Each is locked by the one task of its row.
        let choices: Vec<_> = requests
            .iter_mut()
            .zip(rows)
            .map(|(request, row)| {
                let history = request.history();
                Mutex::new((&mut *request.sampler, history, row, None))
            })
            .collect();
        self.pool.run(choices.len(), &|index, _| {
            let mut choice = choices[index].lock().unwrap_or_else(PoisonError::into_inner);
            let (sampler, tokens, row, chosen) = &mut *choice;
            *chosen = Some(sampler.sample(row, tokens));
        });
        let chosen = choices.into_iter().map(|choice| choice.into_inner().unwrap_or_else(PoisonError::into_inner).3);
        HostTokens(chosen.map(|choice| choice.expect("the task of every row has run")).collect())
    }

    fn read(&mut self, tokens: HostTokens) -> Result<Vec<Choice>> {
        Ok(tokens.0)
    }

    fn to_host(&mut self, x: &Tensor) -> Result<Vec<Vec<f32>>> {
        Ok((0..x.rows).map(|row| x.row(row).to_vec()).collect())
    }
}

/// The elementwise kernels work in whole vectors.
fn assert_whole_vectors(width: usize) {
    assert!(width.is_multiple_of(LANES), "rows of {width} are not whole vectors of {LANES}");
}
