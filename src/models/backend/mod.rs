//! The interface to a compute device: coarse operations over the rows of one step.
//!
//! A step's rows are the new tokens of its spans, in order. A row's result depends only on its own sequence: not on the other
//! rows, on how a prompt is divided into chunks, or on the number of threads. On `cpu` this holds bit for bit; another device
//! may differ by rounding.
//!
//! A device may be lazy: an operation of a step may only record what has to be computed. Of these operations only `read` and
//! `to_host` wait, and `sample` on a backend that does not run ahead.

pub mod cpu;
#[cfg(test)]
pub(crate) mod script;

use super::network::{Activation, Attention, DecoderSpec, NormSpec};
use super::weights::Matrix;
use super::{Result, Sampled, Sampling, sampler::Sampler};
use std::borrow::Cow;

/// The backend that this build computes on.
pub type Native = cpu::Cpu;

/// The tokens that a span adds to its sequence.
pub enum Input<'a, B: Backend> {
    /// Ids in host memory: a chunk of a prompt, or a token that was read.
    Ids(&'a [u32]),
    /// One row of an earlier `sample`, which may still be on the device.
    Sampled(&'a B::Tokens, usize),
}

/// The new tokens of one sequence in one step: a chunk of its prompt, or one token to decode.
pub struct Span<'a, B: Backend> {
    pub input: Input<'a, B>,
    /// Position of the first new token. When the step begins, the cache holds exactly the positions before it.
    pub position: usize,
    pub cache: &'a mut B::Cache,
}

impl<'a, B: Backend> Span<'a, B> {
    pub fn ids(ids: &'a [u32], position: usize, cache: &'a mut B::Cache) -> Self {
        Self { input: Input::Ids(ids), position, cache }
    }

    /// Number of new tokens: the rows of this span.
    pub fn rows(&self) -> usize {
        match &self.input {
            Input::Ids(ids) => ids.len(),
            Input::Sampled(..) => 1,
        }
    }

    /// The position after the last new token.
    pub fn end(&self) -> usize {
        self.position + self.rows()
    }
}

/// The outcome of one row of `sample`: a token, the reason why there is none, or the payload of a sampler's panic.
pub type Choice = std::thread::Result<Result<Sampled>>;

/// Chooses one token from one row of logits.
///
/// A backend that samples on the host calls `sample`, from any of its threads. A panic that leaves `sample` ends the step of
/// all sequences. A sampler that must not do this returns the panic's payload.
pub trait RowSampler: Send {
    /// The parameters, for a backend that samples on its device.
    fn sampling(&self) -> &Sampling;
    /// The number of alternatives to report with log-probabilities; `None`: report none, also not the token's own.
    fn logprobs(&self) -> Option<u8>;
    /// `logits`: `[vocab_size]`, overwritten. `tokens`: the prompt and the completion so far.
    fn sample(&mut self, logits: &mut [f32], tokens: &[u32]) -> Choice;
}

impl RowSampler for Sampler {
    fn sampling(&self) -> &Sampling {
        Sampler::sampling(self)
    }

    fn logprobs(&self) -> Option<u8> {
        Sampler::logprobs(self)
    }

    fn sample(&mut self, logits: &mut [f32], tokens: &[u32]) -> Choice {
        Ok(Sampler::sample(self, logits, tokens))
    }
}

/// One choice of a next token.
pub struct SampleRequest<'a, B: Backend> {
    pub sampler: &'a mut dyn RowSampler,
    /// The prompt and the completion as far as it was read.
    pub tokens: &'a [u32],
    /// The token after `tokens`, if it was sampled but not read yet.
    pub unread: Option<(&'a B::Tokens, usize)>,
}

/// The choices of one step on a backend that samples on the host, made when `sample` was called.
pub struct HostTokens(Vec<Choice>);

impl HostTokens {
    /// The token of a row. A row without a token gives token 0: what is computed from it is discarded with its sequence.
    fn id(&self, row: usize) -> u32 {
        match &self.0[row] {
            Ok(Ok(sampled)) => sampled.token,
            Ok(Err(_)) | Err(_) => 0,
        }
    }
}

impl<'a, B: Backend<Tokens = HostTokens>> SampleRequest<'a, B> {
    /// The tokens that the sampler looks back at: `tokens` and the unread one.
    fn history(&self) -> Cow<'a, [u32]> {
        match self.unread {
            None => self.tokens.into(),
            Some((choices, row)) => [self.tokens, &[choices.id(row)]].concat().into(),
        }
    }
}

/// One weight matrix of a `Linear`, with its bias.
pub struct LinearPart<'a> {
    pub weight: Matrix<'a>,
    /// One value per output.
    pub bias: Option<Vec<f32>>,
}

/// A backend in a few facts, known without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// Backend and instruction set, such as "cpu (avx2)".
    pub name: String,
    pub threads: usize,
    /// The slow reference kernels run: there are none for this processor's instruction set.
    pub is_reference: bool,
}

/// A compute device with its memory.
///
/// No associated type is `Send`: all values are made, used and dropped on the decoder's thread.
///
/// # Panics
/// Every operation checks the shapes of its arguments once, and panics if they do not fit together. Shapes come from the
/// spec and from weights that were checked at load, so a panic is a defect of the caller.
pub trait Backend: Sized {
    type Settings;
    /// One or several weight matrices over the same input.
    type Linear;
    type Norm;
    /// Activations, `[rows, width]`.
    type Tensor;
    /// Keys and values of one sequence in every layer.
    type Cache;
    /// The tokens that one `sample` chose, one per row.
    type Tokens;
    /// State that one step computes once for all layers, such as masks and writable pages of the caches.
    type Step;

    /// # Errors
    /// `Unsupported` if the spec has something that this backend lacks.
    fn open(spec: &DecoderSpec, settings: &Self::Settings) -> Result<Self>;
    /// Describes the backend that `open` would return.
    fn describe(settings: &Self::Settings) -> Result<BackendInfo>;
    /// Bytes that may still be allocated for weights and caches; `None` if the system does not report it.
    fn free_memory() -> Option<u64>;
    /// Bytes of keys and values that one token takes in all layers.
    fn kv_bytes_per_token(spec: &DecoderSpec, settings: &Self::Settings) -> u64;
    /// Bytes that a weight takes in a `Linear`.
    fn weight_bytes(weight: &Matrix<'_>) -> usize;
    /// Whether the next step should be submitted before the choices of the last one are read. A lazy device then never waits
    /// for the host; the price is one wasted row per completion that ends before its length limit, because its end is seen one step late.
    fn runs_ahead(&self) -> bool;

    /// Returns when the weights are in the backend's memory: the files may then be released.
    ///
    /// # Errors
    /// `Unsupported` if the backend has no layout for one of the weights.
    fn linear(&mut self, parts: Vec<LinearPart<'_>>) -> Result<Self::Linear>;
    /// # Errors
    /// `Unsupported` if the backend lacks this kind of norm.
    fn norm_weight(&mut self, weight: Vec<f32>, spec: NormSpec) -> Result<Self::Norm>;

    /// An empty cache for one sequence.
    fn cache(&mut self) -> Self::Cache;
    /// A second cache with the first `length` positions. Whether memory is shared or copied cannot be observed.
    fn fork(&mut self, cache: &Self::Cache, length: usize) -> Self::Cache;
    /// Keeps the first `length` positions.
    fn truncate(&mut self, cache: &mut Self::Cache, length: usize);
    fn cache_bytes(&self, cache: &Self::Cache) -> usize;

    /// Makes room for the spans' new tokens in their caches. The first operation of a step.
    fn begin(&mut self, spans: &mut [Span<'_, Self>]) -> Self::Step;
    /// The rows of `table` for every token of every span: `[rows, hidden_size]`.
    fn embed(&mut self, table: &Self::Linear, spans: &[Span<'_, Self>]) -> Self::Tensor;
    fn norm(&mut self, x: &Self::Tensor, norm: &Self::Norm) -> Self::Tensor;
    /// `x * weight^T + bias` for each of the `N` parts of `by`.
    fn project<const N: usize>(&mut self, x: &Self::Tensor, by: &Self::Linear) -> [Self::Tensor; N];
    /// Normalizes and rotates q and k, appends k and v to the caches, attends: `[rows, heads * head_dim]`.
    fn attend(
        &mut self,
        qkv: [Self::Tensor; 3],
        attention: &Attention<Self::Norm>,
        layer: usize,
        step: &Self::Step,
        spans: &mut [Span<'_, Self>],
    ) -> Self::Tensor;
    /// `activation(gate) * up`.
    fn gate(&mut self, gate: Self::Tensor, up: Self::Tensor, activation: Activation) -> Self::Tensor;
    fn add(&mut self, x: Self::Tensor, y: Self::Tensor) -> Self::Tensor;
    /// The given rows of `x`.
    fn select(&mut self, x: Self::Tensor, rows: &[usize]) -> Self::Tensor;
    /// Chooses one token per row of `logits`, without waiting for the device.
    fn sample(&mut self, logits: Self::Tensor, requests: &mut [SampleRequest<'_, Self>]) -> Self::Tokens;

    /// Waits for the whole step that this `sample` ended, also for rows from which nothing was chosen. Tokens may be dropped
    /// unread: the choices are then lost, and the caches stay valid.
    ///
    /// # Errors
    /// The first error of the device since the last `read`. The caches of the step are then unusable.
    fn read(&mut self, tokens: Self::Tokens) -> Result<Vec<Choice>>;
    /// Waits for a tensor and copies its rows to the host, for tests and tools.
    ///
    /// # Errors
    /// As `read`.
    fn to_host(&mut self, x: &Self::Tensor) -> Result<Vec<Vec<f32>>>;
}
