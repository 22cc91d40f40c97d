//! The complete output of one request: the worker session writes it, and readers follow at their own pace.
//!
//! Appending never waits, so a slow reader delays nothing. The end is set exactly once, also during a panic. Dropping the
//! last reader cancels the request; there is no other way to cancel one.

use crate::actors::{End, Error, Replay, Request, Sampled, Step};
use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// Admits one request. Their number is limited by `Limits::requests_in_flight`.
pub(super) struct RequestPermit {
    _permit: OwnedSemaphorePermit,
}

impl RequestPermit {
    pub(super) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: permit }
    }
}

pub(super) fn transcript(permit: RequestPermit, request: &Request) -> (TranscriptWriter, Reader) {
    let state = Mutex::new(State { readers: 1, ..State::default() });
    let log = Arc::new(Log { state, changed: Notify::new(), abandoned: Notify::new() });
    let writer = TranscriptWriter { log: log.clone(), model: request.model.clone(), permit: Some(permit) };
    (writer, Reader { log, seq: 0, text: 0, tokens: 0 })
}

struct Log {
    state: Mutex<State>,
    /// Notified after an append and when the end is set.
    changed: Notify,
    /// Notified when the last reader is dropped and when the end is set.
    abandoned: Notify,
}

#[derive(Default)]
struct State {
    steps: u64,
    text: String,
    tokens: Vec<Sampled>,
    end: Option<End>,
    readers: usize,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state inconsistent, so a poisoned lock is safe to use.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_abandoned_or_ended(&self) -> bool {
        let state = self.state();
        state.readers == 0 || state.end.is_some()
    }

    async fn ended(&self) -> End {
        loop {
            // Subscribe before the check, so that no notification between the two is missed.
            let changed = self.changed.notified();
            if let Some(end) = &self.state().end {
                return end.clone();
            }
            changed.await;
        }
    }
}

/// The write end. It holds the request's permit. Dropping it without an end fails the request as lost.
pub(super) struct TranscriptWriter {
    log: Arc<Log>,
    model: String,
    permit: Option<RequestPermit>,
}

impl TranscriptWriter {
    pub(super) fn record(&mut self, step: Step) {
        let mut state = self.log.state();
        state.steps += 1;
        state.text.push_str(&step.text);
        state.tokens.extend(step.tokens);
        drop(state);
        self.log.changed.notify_waiters();
    }

    pub(super) fn end(mut self, end: End) {
        self.close(|_| end);
    }

    pub(super) fn fail(self, error: Error) {
        self.end(End::Failed(error));
    }

    /// Tokens recorded so far.
    pub(super) fn tokens(&self) -> usize {
        self.log.state().tokens.len()
    }

    pub(super) fn replay(&self) -> Replay {
        let state = self.log.state();
        Replay { tokens: state.tokens.clone(), delivered_bytes: state.text.len() as u64 }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.log.state().readers == 0
    }

    /// Resolves when the last reader is dropped, or when there is nothing left to cancel.
    pub(super) fn abandoned(&self) -> impl Future<Output = ()> + use<> {
        let log = self.log.clone();
        async move {
            loop {
                let abandoned = log.abandoned.notified();
                if log.is_abandoned_or_ended() {
                    return;
                }
                abandoned.await;
            }
        }
    }

    fn close(&mut self, end: impl FnOnce(&Self) -> End) {
        // Release the permit first: the caller may send its next request as soon as it reads the end.
        if self.permit.take().is_none() {
            return;
        }
        let end = end(self);
        self.log.state().end = Some(end);
        self.log.changed.notify_waiters();
        self.log.abandoned.notify_waiters();
    }
}

impl Drop for TranscriptWriter {
    fn drop(&mut self) {
        self.close(|writer| {
            End::Failed(Error::WorkerLost { model: writer.model.clone(), cause: "its session stopped before the request ended".into() })
        });
    }
}

/// Everything appended to a transcript since the previous update of the same reader.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Number of the first decode step in this update, counted from 0.
    pub seq: u64,
    pub text: String,
    /// The sampled tokens, including those whose text is still held back.
    pub tokens: Vec<Sampled>,
    /// Set in the last update.
    pub end: Option<End>,
}

/// A reader of one request's transcript. Dropping the last reader cancels the request.
pub struct Reader {
    log: Arc<Log>,
    /// Start of the next update: step, byte of the text, token.
    seq: u64,
    text: usize,
    tokens: usize,
}

impl Reader {
    /// Waits for the next update; cancel-safe. After the end it returns the end again.
    pub async fn next(&mut self) -> Update {
        let log = self.log.clone();
        loop {
            let changed = log.changed.notified();
            if let Some(update) = self.take() {
                return update;
            }
            changed.await;
        }
    }

    /// Drops this reader, which cancels the request if it was the last, and returns a handle to the request's end.
    pub fn abandon(self) -> Completion {
        Completion { log: self.log.clone() }
    }

    fn take(&mut self) -> Option<Update> {
        let state = self.log.state();
        if state.steps == self.seq && state.end.is_none() {
            return None;
        }
        let seq = mem::replace(&mut self.seq, state.steps);
        let text = state.text[mem::replace(&mut self.text, state.text.len())..].to_owned();
        let tokens = state.tokens[mem::replace(&mut self.tokens, state.tokens.len())..].to_owned();
        Some(Update { seq, text, tokens, end: state.end.clone() })
    }
}

/// A second reader that continues from the same position.
impl Clone for Reader {
    fn clone(&self) -> Self {
        self.log.state().readers += 1;
        Self { log: self.log.clone(), ..*self }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.log.state();
        state.readers -= 1;
        if state.readers == 0 {
            drop(state);
            self.log.abandoned.notify_waiters();
        }
    }
}

/// The end of a request, without keeping the request alive as a reader does.
pub struct Completion {
    log: Arc<Log>,
}

impl Completion {
    /// Resolves once the worker has stopped computing for the request.
    pub async fn wait(self) -> End {
        self.log.ended().await
    }
}
