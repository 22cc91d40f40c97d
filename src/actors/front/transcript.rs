//! One request's whole answer: the life of its worker writes, readers follow at their own pace.
//!
//! Appending never waits, so a reader that stops delays nobody. The end is set exactly once, also while unwinding.
//! When the last reader is gone the request is cancelled: the one cancellation there is.

use crate::actors::{End, Error, Replay, Request, Sampled, Step};
use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// The right to have a request in hand.
pub(super) struct Ticket {
    _permit: OwnedSemaphorePermit,
}

impl Ticket {
    pub(super) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: permit }
    }
}

pub(super) fn transcript(ticket: Ticket, request: &Request) -> (Recorder, Reader) {
    let state = Mutex::new(State { readers: 1, ..State::default() });
    let log = Arc::new(Log { state, news: Notify::new(), left: Notify::new() });
    let recorder = Recorder { log: log.clone(), model: request.model.clone(), ticket: Some(ticket) };
    (recorder, Reader { log, seq: 0, text: 0, tokens: 0 })
}

struct Log {
    state: Mutex<State>,
    /// Something was appended, or the end was set.
    news: Notify,
    /// The last reader left, or the end was set.
    left: Notify,
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
        // Nothing is half done while the lock is held, so a poisoned one still guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody reads, or there is nothing more to read.
    fn is_left(&self) -> bool {
        let state = self.state();
        state.readers == 0 || state.end.is_some()
    }

    async fn ended(&self) -> End {
        loop {
            // Made before the look, so that what happens between the two is not missed.
            let news = self.news.notified();
            if let Some(end) = &self.state().end {
                return end.clone();
            }
            news.await;
        }
    }
}

/// The write end. It holds the request's ticket, and a request whose recorder is dropped ends as lost.
pub(super) struct Recorder {
    log: Arc<Log>,
    model: String,
    ticket: Option<Ticket>,
}

impl Recorder {
    pub(super) fn record(&mut self, step: Step) {
        let mut state = self.log.state();
        state.steps += 1;
        state.text.push_str(&step.text);
        state.tokens.extend(step.tokens);
        drop(state);
        self.log.news.notify_waiters();
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

    /// Resolves when the last reader is gone, or when there is nothing left to cancel.
    pub(super) fn abandoned(&self) -> impl Future<Output = ()> + use<> {
        let log = self.log.clone();
        async move {
            loop {
                let left = log.left.notified();
                if log.is_left() {
                    return;
                }
                left.await;
            }
        }
    }

    fn close(&mut self, end: impl FnOnce(&Self) -> End) {
        // Who reads the end may ask again at once, so the ticket is back before.
        if self.ticket.take().is_none() {
            return;
        }
        let end = end(self);
        self.log.state().end = Some(end);
        self.log.news.notify_waiters();
        self.log.left.notify_waiters();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.close(|recorder| {
            End::Failed(Error::WorkerLost { model: recorder.model.clone(), cause: "its supervision ended without an answer".into() })
        });
    }
}

/// What is new in a transcript since the last look, joined.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// The transcript's number of the first step in this piece; steps count from 0.
    pub seq: u64,
    pub text: String,
    pub tokens: Vec<Sampled>,
    pub end: Option<End>,
}

/// One reader of one request's transcript. When the last is dropped the request is cancelled.
pub struct Reader {
    log: Arc<Log>,
    /// Where the next piece starts.
    seq: u64,
    text: usize,
    tokens: usize,
}

impl Reader {
    /// Waits for something new; cancel-safe. After the end it returns the end again.
    pub async fn next(&mut self) -> News {
        let log = self.log.clone();
        loop {
            let news = log.news.notified();
            if let Some(news) = self.take() {
                return news;
            }
            news.await;
        }
    }

    /// Stops reading, which cancels when nobody else reads, and keeps a way to learn how it ended.
    pub fn abandon(self) -> Ending {
        Ending { log: self.log.clone() }
    }

    fn take(&mut self) -> Option<News> {
        let state = self.log.state();
        if state.steps == self.seq && state.end.is_none() {
            return None;
        }
        let seq = mem::replace(&mut self.seq, state.steps);
        let text = state.text[mem::replace(&mut self.text, state.text.len())..].to_owned();
        let tokens = state.tokens[mem::replace(&mut self.tokens, state.tokens.len())..].to_owned();
        Some(News { seq, text, tokens, end: state.end.clone() })
    }
}

/// A second reader, from where this one stands.
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
            self.log.left.notify_waiters();
        }
    }
}

/// How a request ends, without keeping it alive.
pub struct Ending {
    log: Arc<Log>,
}

impl Ending {
    /// Resolves once nothing computes for the request any more.
    pub async fn wait(self) -> End {
        self.log.ended().await
    }
}
