//! From choices to text, ends and failures of their requests.

use super::{Batch, Running, Submitted, micros};
use crate::actors::worker::messages::Disconnected;
use crate::actors::{End, Error, FinishReason, FromWorker, ModelError, Sampling, Step, Usage};
use crate::failpoints::{self, Point};
use crate::models::backend::{Backend, Choice};
use crate::models::cache::CacheEntry;
use crate::models::sequence::Appended;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

impl<B: Backend> Batch<B> {
    /// Waits for a step's choices and reports them. A choice whose sequence has ended meanwhile is dropped.
    pub(super) fn deliver(&mut self, Submitted { choices, ids, prompt_tokens, start }: Submitted<B>) -> Result<(), Disconnected> {
        let choices = match self.decoder.backend.read(choices) {
            Ok(choices) => choices,
            Err(error) => {
                // The caches cannot be trusted any more, so this worker ends and its requests are replayed in the next one.
                self.outbox.send(FromWorker::Broken { cause: format!("the backend failed: {error}") })?;
                return Err(Disconnected);
            }
        };
        assert_eq!(choices.len(), ids.len(), "a backend returns one choice for each row that was sampled");
        // A device that runs ahead began this step when the last one was complete.
        let began = self.last_step.map_or(start, |last| start.max(last));
        self.last_step = Some(Instant::now());
        self.adapt_chunk(prompt_tokens, began.elapsed());
        let mut choices: Vec<(u64, Option<Choice>)> = ids.into_iter().zip(choices.into_iter().map(Some)).collect();
        for mut running in std::mem::take(&mut self.running) {
            let id = running.prepared.job.id;
            let Some(choice) = choices.iter_mut().find(|(of, _)| *of == id).and_then(|(_, choice)| choice.take()) else {
                self.running.push(running);
                continue;
            };
            running.first_token.get_or_insert_with(Instant::now);
            match self.take_choice(&mut running, choice) {
                Ok((step, end)) => {
                    self.outbox.send(FromWorker::Step { id, step })?;
                    match end {
                        None => self.running.push(running),
                        Some(reason) => self.end(running, reason)?,
                    }
                }
                Err(error) => self.finish(running, |_, _| End::Failed(error))?,
            }
        }
        Ok(())
    }

    fn take_choice(&self, running: &mut Running<B::Cache>, choice: Choice) -> Result<(Step, Option<FinishReason>), Error> {
        running.sequence.unread -= 1;
        // The panic's own text may quote a prompt.
        let sampled = choice.map_err(|_| Error::StagePanicked { stage: "sampler".into(), cause: "choosing a token".into() })??;
        let Appended { text, end } = self.push_token(running, sampled.token)?;
        let text = std::mem::take(&mut running.recovered) + &text;
        Ok((Step { text, tokens: vec![sampled] }, end))
    }

    /// Appends a token to a sequence. A panic of the detokenizer or the stop matcher fails this request only.
    pub(super) fn push_token(&self, running: &mut Running<B::Cache>, token: u32) -> Result<Appended, Error> {
        let request = &running.prepared.job.request;
        let (eos_ids, seed) = (self.codec.eos_ids(&request.prompt), request.sampling.seed);
        let appended = catch_unwind(AssertUnwindSafe(|| {
            let fault = failpoints::check(Point::Stopper, Some(seed));
            fault.map_err(|fault| ModelError::Unsupported(fault.to_string()))?;
            running.sequence.push_token(token, &self.codec, eos_ids)
        }));
        let appended = appended.map_err(|_| Error::StagePanicked { stage: "stopper".into(), cause: "turning a token into text".into() })?;
        Ok(appended?)
    }

    pub(super) fn end(&mut self, running: Running<B::Cache>, reason: FinishReason) -> Result<(), Disconnected> {
        self.finish(running, |usage, applied| End::Done { reason, usage, applied })
    }

    /// Gives the cache back before it reports the end, so that the memory is free when the end is received.
    pub(super) fn finish(&mut self, running: Running<B::Cache>, end: impl FnOnce(Usage, Sampling) -> End) -> Result<(), Disconnected> {
        let Running { prepared, mut sequence, mut usage, admitted, first_token, .. } = running;
        usage.completion_tokens = sequence.completion_tokens() as u32;
        let until = first_token.unwrap_or_else(Instant::now);
        usage.prefill_us = micros(until - admitted);
        usage.decode_us = micros(until.elapsed());
        failpoints::at(Point::Keep, Some(prepared.job.request.sampling.seed));
        let known = sequence.computed_tokens().len();
        if known < sequence.computed {
            self.decoder.backend.truncate(&mut sequence.cache, known);
        }
        let bytes = self.decoder.backend.cache_bytes(&sequence.cache);
        sequence.tokens.truncate(known);
        self.prefix_cache.insert(CacheEntry { tokens: sequence.tokens, cache: sequence.cache, bytes });
        let id = prepared.job.id;
        self.outbox.send(FromWorker::End { id, end: end(usage, prepared.job.request.sampling) })
    }
}
