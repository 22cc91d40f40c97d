//! What a decoder asks of the hardware: coarse operations over the rows of one step.
//!
//! A step's rows are the new tokens of its spans, in order. A row's result depends on nothing but its own
//! sequence: not on the other rows, the chunking or the number of threads.

pub mod cpu;

use super::network::DecoderSpec;
use super::weights::Matrix;
use super::{Result, Sampled, sampler::Sampler};

/// The new tokens of one sequence in one step: a prefill chunk, or one token to decode.
pub struct Span<'a, C> {
    pub tokens: &'a [u32],
    /// Position of the first of them; the cache holds exactly what comes before.
    pub position: usize,
    pub cache: &'a mut C,
}

/// One choice of a next token: which row of the logits, by which sampler, after which tokens.
pub struct SampleRequest<'a> {
    pub sampler: &'a mut Sampler,
    pub tokens: &'a [u32],
}

pub struct Norm<B: Backend> {
    pub weight: B::Vector,
    pub epsilon: f32,
}

/// Nothing here is `Send`: made, used and dropped on the decoder's thread.
pub trait Backend: Sized {
    type Matrix;
    type Vector;
    /// Rows of activations.
    type Tensor;
    /// Keys and values of one sequence in every layer.
    type Cache;

    fn matrix(&mut self, from: &Matrix<'_>) -> Result<Self::Matrix>;
    /// Bytes that `matrix` would take.
    fn matrix_bytes(from: &Matrix<'_>) -> usize;
    fn vector(&mut self, from: Vec<f32>) -> Result<Self::Vector>;

    fn cache(&mut self, spec: &DecoderSpec) -> Self::Cache;
    /// A second cache with the first `length` positions: shared or copied, the caller can't tell.
    fn fork(&mut self, cache: &Self::Cache, length: usize) -> Self::Cache;
    fn truncate(&mut self, cache: &mut Self::Cache, length: usize);
    fn cache_bytes(&self, cache: &Self::Cache) -> usize;

    /// `[rows, width]`: the table's rows of every token of every span.
    fn embed(&mut self, table: &Self::Matrix, spans: &[Span<'_, Self::Cache>]) -> Self::Tensor;
    fn norm(&mut self, x: &Self::Tensor, norm: &Norm<Self>) -> Self::Tensor;
    /// Several projections of one input (q k v; gate up): its activations are quantized once, per row.
    fn project(&mut self, x: &Self::Tensor, by: &[&Self::Matrix]) -> Vec<Self::Tensor>;
    /// Adds one vector to every row.
    fn bias(&mut self, x: Self::Tensor, by: &Self::Vector) -> Self::Tensor;
    /// Rotates q and k, appends k and v to each span's cache, attends: `[rows, heads * head_size]`.
    fn attend(&mut self, qkv: [Self::Tensor; 3], layer: usize, spec: &DecoderSpec, spans: &mut [Span<'_, Self::Cache>]) -> Self::Tensor;
    /// `activation(gate) * up`.
    fn gate(&mut self, gate: Self::Tensor, up: Self::Tensor) -> Self::Tensor;
    fn add(&mut self, x: Self::Tensor, y: Self::Tensor) -> Self::Tensor;
    /// The chosen rows of `x`.
    fn select(&mut self, x: Self::Tensor, rows: &[usize]) -> Self::Tensor;
    /// One token for each row of `logits`. A sampler that panics fails its own row only.
    fn sample(&mut self, logits: Self::Tensor, draws: &mut [SampleRequest<'_>]) -> Vec<Result<Sampled>>;
    /// Rows of a tensor, for tests and tools.
    fn read(&mut self, x: &Self::Tensor) -> Vec<Vec<f32>>;
}
