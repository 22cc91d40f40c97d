//! Admission of requests, and the choice of the tokens that a step computes.

use super::{Batch, GuardedSampler, RUNNING_MAX, Running, Submitted, micros};
use crate::actors::worker::messages::{Disconnected, Prepared};
use crate::actors::{End, Error, FinishReason, FromWorker, ModelError, Step, Usage};
use crate::failpoints::{self, Point};
use crate::models::backend::{Backend, Input, SampleRequest, Span};
use crate::models::detokenizer::Detokenizer;
use crate::models::sampler::Sampler;
use crate::models::sequence::{Appended, Sequence};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// Work of one step's prompt tokens: half of a pause that a reader notices.
const CHUNK_TIME: Duration = Duration::from_millis(50);
/// Prompt tokens of one step. The lower bound keeps a slow model going, the upper one limits a step's memory.
const CHUNK_TOKENS: RangeInclusive<usize> = 16..=512;
/// Prompt tokens of the first step, before anything was measured.
pub(super) const FIRST_CHUNK: usize = 64;

impl<B: Backend> Batch<B> {
    pub(super) fn end_cancelled(&mut self) -> Result<(), Disconnected> {
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

    pub(super) fn admit_waiting(&mut self) -> Result<(), Disconnected> {
        while self.running.len() < RUNNING_MAX
            && self.next_fits()
            && let Some(prepared) = self.waiting.pop_front()
        {
            self.admit(prepared)?;
        }
        Ok(())
    }

    /// Whether the next request can reach its full length beside the running ones. One sequence can always run: the load has
    /// checked that.
    fn next_fits(&self) -> bool {
        let positions = |of: &Prepared| (of.prompt.len() + of.job.request.tokens_max as usize).min(self.codec.context_length()) as u64;
        let taken: u64 = self.running.iter().map(|running| positions(&running.prepared)).sum();
        self.running.is_empty() || self.waiting.front().is_some_and(|next| taken + positions(next) <= self.kv_tokens_max)
    }

    /// Makes a request's sequence, from the longest prefix that is in a cache.
    fn admit(&mut self, prepared: Prepared) -> Result<(), Disconnected> {
        failpoints::at(Point::Admit, Some(prepared.job.request.sampling.seed));
        let (request, replay) = (&prepared.job.request, &prepared.job.replay);
        let vocab_size = self.codec.vocab_size();
        if let Some((token, _)) = request.sampling.logit_bias.iter().find(|(token, _)| *token as usize >= vocab_size) {
            let reason = format!("token {token} is beyond the vocabulary of {vocab_size}");
            let error = ModelError::Parameter { name: "logit_bias".into(), reason };
            return self.outbox.send(FromWorker::End { id: prepared.job.id, end: End::Failed(error.into()) });
        }
        let sequence = Sequence {
            prompt_tokens: prepared.prompt.len(),
            tokens: prepared.prompt.clone(),
            unread: 0,
            computed: 0,
            cache: self.decoder.backend.cache(),
            detokenizer: Detokenizer::new(request.stop.clone(), replay.delivered_bytes as usize),
            tokens_max: request.tokens_max as usize,
        };
        let sampler = GuardedSampler(Sampler::new(request.sampling.clone(), request.logprobs));
        let queue_us = micros(prepared.job.arrived.elapsed());
        let usage = Usage { prompt_tokens: prepared.prompt.len() as u32, queue_us, ..Usage::default() };
        let mut running = Running {
            prepared,
            sequence,
            sampler,
            usage,
            admitted: Instant::now(),
            first_token: None,
            recovered: String::new(),
            chunk: 0,
            row: None,
        };
        match self.recover(&mut running) {
            Ok(None) => {}
            // The worker before this one delivered everything but the end.
            Ok(Some(reason)) => {
                let step = Step { text: std::mem::take(&mut running.recovered), tokens: Vec::new() };
                self.outbox.send(FromWorker::Step { id: running.prepared.job.id, step })?;
                return self.end(running, reason);
            }
            Err(error) => return self.finish(running, |_, _| End::Failed(error)),
        }
        let (cache, cached) = self.cached_prefix(&running.sequence.tokens);
        running.usage.cached_tokens = cached.min(running.sequence.prompt_tokens) as u32;
        running.sequence.cache = cache;
        running.sequence.computed = cached;
        self.running.push(running);
        Ok(())
    }

    /// Appends the tokens that a worker before this one reported. Returns the finish reason if they complete the text.
    fn recover(&self, running: &mut Running<B::Cache>) -> Result<Option<FinishReason>, Error> {
        for sampled in std::mem::take(&mut running.prepared.job.replay.tokens) {
            let Appended { text, end } = self.push_token(running, sampled.token)?;
            running.recovered += &text;
            if end.is_some() {
                return Ok(end);
            }
        }
        Ok(None)
    }

    /// Submits one step over all running sequences, if any of them has something to compute. `last` has the choices that
    /// were not read yet.
    pub(super) fn submit(&mut self, last: Option<&Submitted<B>>) -> Option<Submitted<B>> {
        let prompt_tokens = self.divide_chunks();
        if self.running.iter().all(|running| running.chunk == 0) {
            return None;
        }
        failpoints::at(if prompt_tokens > 0 { Point::Prefill } else { Point::Decode }, None);
        let start = Instant::now();
        let (mut rows, mut row, mut ids) = (Vec::new(), 0, Vec::new());
        let (mut spans, mut requests) = (Vec::new(), Vec::new());
        for Running { prepared, sequence, sampler, chunk, row: choice_row, .. } in &mut self.running {
            if *chunk == 0 {
                continue;
            }
            let Sequence { tokens, unread, computed, cache, .. } = sequence;
            let unread_choice = last.zip(*choice_row).filter(|_| *unread > 0).map(|(last, row)| (&last.choices, row));
            let input = match unread_choice {
                Some((choices, row)) => Input::Sampled(choices, row),
                None => Input::Ids(&tokens[*computed..*computed + *chunk]),
            };
            spans.push(Span { input, position: *computed, cache });
            row += *chunk;
            *computed += *chunk;
            if *computed == tokens.len() + *unread {
                requests.push(SampleRequest { sampler, tokens, unread: unread_choice });
                *choice_row = Some(rows.len());
                *unread += 1;
                rows.push(row - 1);
                ids.push(prepared.job.id);
            }
        }
        let sequences = spans.len() as u32;
        let logits = self.decoder.step(&mut spans, &rows);
        drop(spans);
        let choices = self.decoder.backend.sample(logits, &mut requests);
        drop(requests);
        // A prompt that had its turn goes behind those that had none.
        self.running.sort_by_key(|running| running.chunk > 0 && running.sequence.unread == 0);

        self.status.steps += 1;
        self.status.rows += row as u64;
        self.status.step_sequences = sequences;
        self.status.step_sequences_max = self.status.step_sequences_max.max(sequences);
        Some(Submitted { choices, ids, prompt_tokens, start })
    }

    /// Sets how many tokens of each sequence the next step computes. Returns how many of them are prompt tokens.
    fn divide_chunks(&mut self) -> usize {
        let prompts = self.running.iter().filter(|r| r.sequence.pending() > 1).count();
        let share = (self.chunk_tokens / prompts.max(1)).max(*CHUNK_TOKENS.start());
        let mut left = self.chunk_tokens;
        for running in &mut self.running {
            let pending = running.sequence.pending();
            running.chunk = if pending > 1 {
                let chunk = pending.min(share).min(left);
                left -= chunk;
                chunk
            } else if running.sequence.is_full(self.codec.context_length()) {
                // The unread choice is the last one.
                0
            } else {
                pending
            };
        }
        self.chunk_tokens - left
    }

    pub(super) fn adapt_chunk(&mut self, prompt_tokens: usize, elapsed: Duration) {
        // Small chunks measure the fixed cost of a step rather than the cost of a token.
        if prompt_tokens >= *CHUNK_TOKENS.start() {
            let fitting = prompt_tokens as f64 * CHUNK_TIME.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
            let mixed = (self.chunk_tokens as f64 + fitting) / 2.0;
            self.chunk_tokens = (mixed as usize).clamp(*CHUNK_TOKENS.start(), *CHUNK_TOKENS.end());
        }
    }
}
