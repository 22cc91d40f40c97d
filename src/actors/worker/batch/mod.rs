//! Continuous batching: which tokens the next step computes, and what becomes of the choices.
//!
//! A step has one token of every sequence that decodes and a chunk of the prompts that are still being read, about
//! 50 ms of work in all. So a long prompt neither delays the other sequences nor continues for long after its cancellation.
//!
//! On a backend that runs ahead, a step is submitted before the choices of the step before it are read: its decoding
//! sequences continue from choices that are still on the device.

mod deliver;
mod prefix;
mod schedule;
#[cfg(test)]
mod tests;

use super::messages::{Disconnected, Outbox, Prepared, ToDecoder};
use super::probe::ActivityProbe;
use crate::actors::{DecoderStatus, FromWorker, Usage};
use crate::models::Sampling;
use crate::models::backend::{Backend, Choice, RowSampler};
use crate::models::cache::PrefixCache;
use crate::models::codec::TextCodec;
use crate::models::network::Decoder;
use crate::models::sampler::Sampler;
use crate::models::sequence::Sequence;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sequences that share a step: on the few cores of a laptop, more rows cost more than they gain.
const RUNNING_MAX: usize = 16;

pub(super) struct Batch<B: Backend> {
    decoder: Decoder<B>,
    codec: Arc<TextCodec>,
    waiting: VecDeque<Prepared>,
    /// Tokens for whose keys and values there is memory.
    kv_tokens_max: u64,
    running: Vec<Running<B::Cache>>,
    prefix_cache: PrefixCache<B::Cache>,
    /// The step whose choices were not read yet; only on a backend that runs ahead.
    submitted: Option<Submitted<B>>,
    outbox: Outbox,
    status: DecoderStatus,
    last_step: Option<Instant>,
    probe: ActivityProbe,
    /// Prompt tokens of one step, adapted to the time that the last steps took.
    chunk_tokens: usize,
}

struct Running<C> {
    prepared: Prepared,
    sequence: Sequence<C>,
    sampler: GuardedSampler,
    usage: Usage,
    admitted: Instant,
    first_token: Option<Instant>,
    /// Text that a replay recovered and that was not sent yet.
    recovered: String,
    /// New tokens in the last step.
    chunk: usize,
    /// This sequence's row among the choices of the last submitted step.
    row: Option<usize>,
}

/// A step in progress.
struct Submitted<B: Backend> {
    choices: B::Tokens,
    /// The requests that the choices belong to, by row.
    ids: Vec<u64>,
    prompt_tokens: usize,
    start: Instant,
}

/// Keeps a panic of a logits processor or of the sampler within its own request.
struct GuardedSampler(Sampler);

impl RowSampler for GuardedSampler {
    fn sampling(&self) -> &Sampling {
        self.0.sampling()
    }

    fn logprobs(&self) -> Option<u8> {
        self.0.logprobs()
    }

    fn sample(&mut self, logits: &mut [f32], tokens: &[u32]) -> Choice {
        catch_unwind(AssertUnwindSafe(|| self.0.sample(logits, tokens)))
    }
}

impl<B: Backend> Batch<B> {
    pub(super) fn new(
        decoder: Decoder<B>,
        codec: Arc<TextCodec>,
        cache_bytes: usize,
        kv_tokens_max: u64,
        outbox: Outbox,
        probe: ActivityProbe,
    ) -> Self {
        let status = DecoderStatus { cache_budget_bytes: cache_bytes as u64, ..DecoderStatus::default() };
        Self {
            decoder,
            codec,
            waiting: VecDeque::new(),
            kv_tokens_max,
            running: Vec::new(),
            prefix_cache: PrefixCache::new(cache_bytes),
            submitted: None,
            outbox,
            status,
            last_step: None,
            probe,
            chunk_tokens: schedule::FIRST_CHUNK,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn receive(&mut self, message: ToDecoder) -> Result<(), Disconnected> {
        match message {
            ToDecoder::Generate(prepared) => self.waiting.push_back(*prepared),
            ToDecoder::Ping { id } => self.outbox.send(FromWorker::Pong { id, status: self.status() })?,
            // A worker loads once. A second load is a defect of the front, and stays without an answer.
            ToDecoder::Load { .. } | ToDecoder::Inspect { .. } | ToDecoder::Codec(_) => {}
        }
        Ok(())
    }

    pub(super) fn status(&self) -> DecoderStatus {
        let running_bytes = self.running.iter().map(|r| self.decoder.backend.cache_bytes(&r.sequence.cache) as u64).sum();
        DecoderStatus {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            cache_entries: self.prefix_cache.len() as u32,
            cache_bytes: self.prefix_cache.bytes() as u64,
            running_bytes,
            last_step_us: self.last_step.map(|ended| micros(ended.elapsed())),
            prompter: self.probe.activity(),
            ..self.status.clone()
        }
    }

    /// Ends cancelled requests, admits waiting ones, computes one step.
    pub(super) fn step(&mut self) -> Result<(), Disconnected> {
        self.end_cancelled()?;
        self.admit_waiting()?;
        let last = self.submitted.take();
        let next = self.submit(last.as_ref());
        let complete = if self.decoder.backend.runs_ahead() {
            self.submitted = next;
            last
        } else {
            next
        };
        if let Some(complete) = complete {
            self.deliver(complete)?;
        }
        if self.running.is_empty() {
            // The step in progress belongs to sequences that have ended.
            self.submitted = None;
        }
        Ok(())
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
