//! Continuous batching: which tokens the next step computes, and what becomes of its choices.
//!
//! A step has one token of every sequence that decodes and, with them, a chunk of the prompts that are still
//! being read, about 50 ms of work in all: so a long prompt neither stalls its neighbours nor outlives its
//! cancellation by more than that.

use super::{ActivityProbe, Disconnected, Outbox, Prepared, ToDecoder};
use crate::actors::{DecoderStatus, End, Error, FinishReason, FromWorker, Sampled, Step, Usage};
use crate::failpoints::{self, Point};
use crate::models::backend::{Backend, SampleRequest, Span};
use crate::models::cache::{CacheEntry, PrefixCache, common};
use crate::models::codec::TextCodec;
use crate::models::network::Decoder;
use crate::models::sampler::Sampler;
use crate::models::sequence::{Appended, Sequence};
use crate::models::stop::Stopper;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sequences that share a step: more rows cost more than they bring on the few cores of a laptop.
const RUNNING: usize = 16;
/// Work of one step's prompt tokens: half of what a reader notices as a pause.
const CHUNK_TIME: Duration = Duration::from_millis(50);
/// Prompt tokens of a step: the least keeps a slow model moving, the most bounds a step's memory.
const CHUNK_TOKENS: std::ops::RangeInclusive<usize> = 16..=512;

pub(super) struct Batch<B: Backend> {
    decoder: Decoder<B>,
    codec: Arc<TextCodec>,
    waiting: VecDeque<Prepared>,
    /// Positions whose keys and values there is memory for.
    room: u64,
    running: Vec<Running<B::Cache>>,
    cache: PrefixCache<B::Cache>,
    outbox: Outbox,
    status: DecoderStatus,
    last_step: Option<Instant>,
    watch: ActivityProbe,
    /// Prompt tokens that fit in a step, from how long the last ones took.
    chunk_tokens: usize,
}

struct Running<C> {
    prepared: Prepared,
    sequence: Sequence<C>,
    usage: Usage,
    admitted: Instant,
    first_token: Option<Instant>,
    /// Text that a replay brought back and no reader has.
    recovered: String,
    /// Prompt tokens in this step.
    chunk: usize,
}

impl<B: Backend> Batch<B> {
    pub(super) fn new(
        decoder: Decoder<B>,
        codec: Arc<TextCodec>,
        cache_bytes: usize,
        room: u64,
        outbox: Outbox,
        watch: ActivityProbe,
    ) -> Self {
        let cache = PrefixCache::new(cache_bytes);
        let status = DecoderStatus { cache_budget_bytes: cache_bytes as u64, ..DecoderStatus::default() };
        Self {
            decoder,
            codec,
            waiting: VecDeque::new(),
            room,
            running: Vec::new(),
            cache,
            outbox,
            status,
            last_step: None,
            watch,
            chunk_tokens: 64,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn take(&mut self, message: ToDecoder) -> Result<(), Disconnected> {
        match message {
            ToDecoder::Generate(prepared) => self.waiting.push_back(*prepared),
            ToDecoder::Ping { id } => self.outbox.send(FromWorker::Pong { id, status: self.status() })?,
            // A worker loads once; a second load is a defect of the front, which then hears nothing from here.
            ToDecoder::Load { .. } | ToDecoder::Inspect { .. } | ToDecoder::Codec(_) => {}
        }
        Ok(())
    }

    pub(super) fn status(&self) -> DecoderStatus {
        let running_bytes = self.running.iter().map(|r| self.decoder.backend.cache_bytes(&r.sequence.cache) as u64).sum();
        DecoderStatus {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            cache_entries: self.cache.len() as u32,
            cache_bytes: self.cache.bytes() as u64,
            running_bytes,
            last_step_us: self.last_step.map(|ended| micros(ended.elapsed())),
            prompter: self.watch.activity(),
            ..self.status.clone()
        }
    }

    /// Ends what was cancelled, admits what waits, computes one step.
    pub(super) fn step(&mut self) -> Result<(), Disconnected> {
        self.end_cancelled()?;
        while self.running.len() < RUNNING
            && self.has_room()
            && let Some(prepared) = self.waiting.pop_front()
        {
            self.admit(prepared)?;
        }
        if self.running.is_empty() {
            return Ok(());
        }
        let sampled = self.compute();
        self.hand_out(sampled)
    }

    /// Whether the next one may become as long as it wants beside those that run. One always may: the load saw to that.
    fn has_room(&self) -> bool {
        let positions = |of: &Prepared| (of.prompt.len() + of.job.request.tokens_max as usize).min(self.codec.context()) as u64;
        let taken: u64 = self.running.iter().map(|running| positions(&running.prepared)).sum();
        self.running.is_empty() || self.waiting.front().is_some_and(|next| taken + positions(next) <= self.room)
    }

    fn end_cancelled(&mut self) -> Result<(), Disconnected> {
        while let Some(index) = self.waiting.iter().position(|prepared| prepared.job.is_cancelled()) {
            let prepared = self.waiting.remove(index).expect("an index that was just found");
            let queue_us = micros(prepared.job.arrived.elapsed());
            let usage = Usage { prompt_tokens: prepared.prompt.len() as u32, queue_us, ..Usage::default() };
            let end = End::Done { reason: FinishReason::Cancelled, usage, applied: prepared.job.request.sampling };
            self.outbox.send(FromWorker::End { id: prepared.job.id, end })?;
        }
        while let Some(index) = self.running.iter().position(|running| running.prepared.job.is_cancelled()) {
            let running = self.running.remove(index);
            self.end(running, FinishReason::Cancelled)?;
        }
        Ok(())
    }

    /// Gives a request its sequence, with the longest beginning that some cache has.
    fn admit(&mut self, prepared: Prepared) -> Result<(), Disconnected> {
        failpoints::at(Point::Admit, Some(prepared.job.request.sampling.seed));
        let (request, replay) = (&prepared.job.request, &prepared.job.replay);
        let beyond = request.sampling.logit_bias.iter().find(|(token, _)| *token as usize >= self.codec.vocabulary());
        if let Some((token, _)) = beyond {
            let reason = format!("token {token} is beyond the vocabulary of {}", self.codec.vocabulary());
            let error = crate::models::Error::Parameter { name: "logit_bias".into(), reason };
            return self.outbox.send(FromWorker::End { id: prepared.job.id, end: End::Failed(error.into()) });
        }
        let sequence = Sequence {
            prompt_tokens: prepared.prompt.len(),
            tokens: prepared.prompt.clone(),
            computed: 0,
            cache: self.decoder.backend.cache(&self.decoder.spec),
            sampler: Sampler::new(request.sampling.clone(), request.logprobs),
            stopper: Stopper::new(request.stop.clone(), replay.delivered_bytes as usize),
            tokens_max: request.tokens_max as usize,
        };
        let usage =
            Usage { prompt_tokens: prepared.prompt.len() as u32, queue_us: micros(prepared.job.arrived.elapsed()), ..Usage::default() };
        let mut running =
            Running { prepared, sequence, usage, admitted: Instant::now(), first_token: None, recovered: String::new(), chunk: 0 };
        match self.recover(&mut running) {
            Ok(None) => {}
            // The worker before this one said everything but the end.
            Ok(Some(reason)) => {
                let step = Step { text: std::mem::take(&mut running.recovered), tokens: Vec::new() };
                self.outbox.send(FromWorker::Step { id: running.prepared.job.id, step })?;
                return self.end(running, reason);
            }
            Err(error) => return self.finish(running, |_, _| End::Failed(error)),
        }
        let (cache, cached) = self.beginning(&running.sequence.tokens);
        running.usage.cached_tokens = cached.min(running.sequence.prompt_tokens) as u32;
        running.sequence.cache = cache;
        running.sequence.computed = cached;
        self.running.push(running);
        Ok(())
    }

    /// Takes in the tokens of a life before this one, and says how the text ended if it did.
    fn recover(&self, running: &mut Running<B::Cache>) -> Result<Option<FinishReason>, Error> {
        for sampled in std::mem::take(&mut running.prepared.job.replay.tokens) {
            let Appended { text, end } = self.grow(running, sampled.token)?;
            running.recovered += &text;
            if end.is_some() {
                return Ok(end);
            }
        }
        Ok(None)
    }

    /// A cache with as much of `tokens` as any has, all but the last, and how much that is.
    fn beginning(&mut self, tokens: &[u32]) -> (B::Cache, usize) {
        let backend = &mut self.decoder.backend;
        let wanted = &tokens[..tokens.len() - 1];
        let kept = self.cache.longest(wanted);
        let shared = |r: &Running<B::Cache>| common(&r.sequence.tokens[..r.sequence.computed], wanted);
        let running = self.running.iter().map(|r| (r, shared(r))).max_by_key(|(_, shared)| *shared);
        if let Some((origin, shared)) = running
            && shared > kept.map_or(0, |(_, shared)| shared)
        {
            return (backend.fork(&origin.sequence.cache, shared), shared);
        }
        let Some((index, shared)) = kept else { return (backend.cache(&self.decoder.spec), 0) };
        // Most of it is wanted: take it. Else another text may go on from what would be cut off.
        if shared * 2 >= self.cache.get(index).tokens.len() {
            let mut kept = self.cache.take(index);
            backend.truncate(&mut kept.cache, shared);
            (kept.cache, shared)
        } else {
            (backend.fork(&self.cache.get(index).cache, shared), shared)
        }
    }

    /// One step over all running sequences; what was chosen for each whose tokens were all read.
    fn compute(&mut self) -> Vec<Option<crate::models::Result<Sampled>>> {
        let prompts = self.running.iter().filter(|r| r.sequence.pending() > 1).count();
        let share = (self.chunk_tokens / prompts.max(1)).max(*CHUNK_TOKENS.start());
        let mut left = self.chunk_tokens;
        for running in &mut self.running {
            let pending = running.sequence.pending();
            running.chunk = if pending > 1 { pending.min(share).min(left) } else { pending };
            left -= if pending > 1 { running.chunk } else { 0 };
        }

        failpoints::at(if left < self.chunk_tokens { Point::Prefill } else { Point::Decode }, None);
        let start = Instant::now();
        let (mut rows, mut row) = (Vec::new(), 0);
        let (mut spans, mut draws, mut chosen) = (Vec::new(), Vec::new(), Vec::new());
        for running in &mut self.running {
            let Sequence { tokens, computed, cache, sampler, .. } = &mut running.sequence;
            let complete = *computed + running.chunk == tokens.len();
            if running.chunk > 0 {
                spans.push(Span { tokens: &tokens[*computed..*computed + running.chunk], position: *computed, cache });
            }
            row += running.chunk;
            if complete {
                rows.push(row - 1);
                draws.push(SampleRequest { sampler, tokens });
            }
            chosen.push(complete);
        }
        let logits = self.decoder.step(&mut spans, &rows);
        let sequences = spans.len() as u32;
        drop(spans);
        let mut sampled = self.decoder.backend.sample(logits, &mut draws).into_iter();
        let sampled = chosen.into_iter().map(|complete| if complete { sampled.next() } else { None }).collect();

        self.status.steps += 1;
        self.status.rows += row as u64;
        self.status.step_sequences = sequences;
        self.status.step_sequences_max = self.status.step_sequences_max.max(sequences);
        self.last_step = Some(Instant::now());
        self.learn_chunk(self.chunk_tokens - left, start.elapsed());
        sampled
    }

    fn learn_chunk(&mut self, tokens: usize, took: Duration) {
        // Small chunks say more of the step's fixed cost than of a token's.
        if tokens >= *CHUNK_TOKENS.start() {
            let fitting = tokens as f64 * CHUNK_TIME.as_secs_f64() / took.as_secs_f64().max(1e-6);
            let mixed = (self.chunk_tokens as f64 + fitting) / 2.0;
            self.chunk_tokens = (mixed as usize).clamp(*CHUNK_TOKENS.start(), *CHUNK_TOKENS.end());
        }
    }

    /// Text, ends and failures to their requests.
    fn hand_out(&mut self, sampled: Vec<Option<crate::models::Result<Sampled>>>) -> Result<(), Disconnected> {
        let (mut going, mut later) = (Vec::with_capacity(RUNNING), Vec::new());
        for (mut running, sampled) in std::mem::take(&mut self.running).into_iter().zip(sampled) {
            running.sequence.computed += running.chunk;
            let Some(sampled) = sampled else {
                // A prompt that had its turn goes behind those that had none.
                if running.chunk > 0 {
                    later.push(running)
                } else {
                    going.push(running)
                }
                continue;
            };
            running.first_token.get_or_insert_with(Instant::now);
            match self.take_choice(&mut running, sampled) {
                Ok((step, end)) => {
                    self.outbox.send(FromWorker::Step { id: running.prepared.job.id, step })?;
                    match end {
                        None => going.push(running),
                        Some(reason) => self.end(running, reason)?,
                    }
                }
                Err(error) => self.finish(running, |_, _| End::Failed(error))?,
            }
        }
        going.append(&mut later);
        self.running = going;
        Ok(())
    }

    /// What a choice brings its request.
    fn take_choice(
        &self,
        running: &mut Running<B::Cache>,
        sampled: crate::models::Result<Sampled>,
    ) -> Result<(Step, Option<FinishReason>), Error> {
        let sampled = sampled.map_err(|error| match error {
            crate::models::Error::SamplerPanicked => Error::StagePanicked { stage: "sampler".into(), cause: "choosing a token".into() },
            other => Error::Model(other),
        })?;
        let Appended { text, end } = self.grow(running, sampled.token)?;
        let text = std::mem::take(&mut running.recovered) + &text;
        Ok((Step { text, tokens: vec![sampled] }, end))
    }

    /// Gives a sequence its next token, behind the stopper's wall.
    fn grow(&self, running: &mut Running<B::Cache>, token: u32) -> Result<Appended, Error> {
        let ends = self.codec.ends(&running.prepared.job.request.prompt);
        let grown = catch_unwind(AssertUnwindSafe(|| {
            let fault = failpoints::check(Point::Stopper, Some(running.prepared.job.request.sampling.seed));
            fault.map_err(|fault| crate::models::Error::Unsupported(fault.to_string()))?;
            running.sequence.grow(token, &self.codec, ends)
        }));
        let grown = grown.map_err(|_| Error::StagePanicked { stage: "stopper".into(), cause: "turning a token into text".into() })?;
        Ok(grown?)
    }

    fn end(&mut self, running: Running<B::Cache>, reason: FinishReason) -> Result<(), Disconnected> {
        self.finish(running, |usage, applied| End::Done { reason, usage, applied })
    }

    /// The cache goes back before the end is told, so that whoever hears of it finds the memory free.
    fn finish(&mut self, running: Running<B::Cache>, end: impl FnOnce(Usage, crate::actors::Sampling) -> End) -> Result<(), Disconnected> {
        let Running { prepared, mut sequence, mut usage, admitted, first_token, .. } = running;
        usage.completion_tokens = sequence.completion_tokens() as u32;
        let until = first_token.unwrap_or_else(Instant::now);
        usage.prefill_us = micros(until - admitted);
        usage.decode_us = micros(until.elapsed());
        failpoints::at(Point::Keep, Some(prepared.job.request.sampling.seed));
        let bytes = self.decoder.backend.cache_bytes(&sequence.cache);
        sequence.tokens.truncate(sequence.computed);
        self.cache.keep(CacheEntry { tokens: sequence.tokens, cache: sequence.cache, bytes });
        let applied = sequence.sampler.sampling().clone();
        self.outbox.send(FromWorker::End { id: prepared.job.id, end: end(usage, applied) })
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
