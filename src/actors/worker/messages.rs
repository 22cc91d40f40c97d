//! The messages between a worker's threads, and its outgoing messages.

use crate::actors::{FromWorker, ModelSource, Question, Replay, Request, Settings};
use crate::config::Limits;
use crate::models::codec::TextCodec;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Messages that can wait for the prompter or the decoder: all requests in flight and as many more. `receiver` refuses further
/// ones instead of waiting, because a waiting thread would not see the end of the link.
pub(super) const INBOX_CAPACITY: usize = 2 * Limits::REQUESTS_IN_FLIGHT_MAX;

/// The other end of the link is closed, so the worker's results are not needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnected;

/// Sends a worker's messages to the front, over a pipe or a channel.
#[derive(Clone)]
pub struct Outbox(Arc<dyn Fn(FromWorker) -> Result<(), Disconnected> + Send + Sync>);

impl Outbox {
    pub fn new(send: impl Fn(FromWorker) -> Result<(), Disconnected> + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }

    pub fn send(&self, message: FromWorker) -> Result<(), Disconnected> {
        (self.0)(message)
    }
}

/// A request on its way to the decoder.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) request: Request,
    pub(super) replay: Replay,
    /// Set by `receiver` at any stage. Each stage checks it before its next unit of work, and ends a cancelled job with an
    /// `End` message.
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) arrived: Instant,
}

pub(super) enum ToPrompter {
    /// The first message, sent once. The decoder gets its `Load` at the same time, and both read the model's files.
    Load {
        source: ModelSource,
    },
    Generate(Job),
    Ask {
        id: u64,
        question: Question,
    },
}

pub(super) enum ToDecoder {
    /// The first message, sent once. Answered with `Loaded`.
    Load {
        source: ModelSource,
        settings: Settings,
    },
    /// Sent instead of `Load`. Answered with `Loaded`, without loading the weights.
    Inspect {
        source: ModelSource,
        settings: Settings,
    },
    /// Sent once by the prompter, also when it failed to load.
    Codec(crate::models::Result<Arc<TextCodec>>),
    Generate(Box<Prepared>),
    /// Answered with `Pong` between two steps.
    Ping {
        id: u64,
    },
}

impl Job {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// A job with its tokenized prompt.
pub(super) struct Prepared {
    pub(super) job: Job,
    pub(super) prompt: Vec<u32>,
}
