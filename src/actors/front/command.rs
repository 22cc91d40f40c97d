//! Commands of a ModelActor to its worker session, and the events that the session reports.

use super::transcript::{RequestPermit, TranscriptWriter};
use crate::actors::{Answer, DecoderStatus, Error, ModelInfo, Question, Request, Result};
use actix::Message;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Complete {
    /// Unique in a runtime, and increasing.
    pub(super) id: u64,
    pub(super) request: Request,
    pub(super) writer: TranscriptWriter,
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Ask {
    pub(super) id: u64,
    pub(super) question: Question,
    pub(super) reply: Reply,
}

/// Where the answer to a question is sent. Dropping it closes the caller's channel.
pub(super) struct Reply {
    /// Cancelled when the caller stops waiting.
    pub(super) caller_gone: CancellationToken,
    pub(super) sender: oneshot::Sender<Result<Answer>>,
    pub(super) permit: RequestPermit,
}

impl Reply {
    pub(super) fn send(self, answer: Result<Answer>) {
        // Release the permit first: the caller may send its next request as soon as it gets the reply.
        drop(self.permit);
        // Fails when the caller stopped waiting.
        let _ = self.sender.send(answer);
    }
}

pub(super) enum Command {
    Complete(Complete, CountedRequest),
    Ask(Ask),
    /// For `status`; dropped without a reply when the model is not loaded.
    Ping(oneshot::Sender<DecoderStatus>),
}

impl Command {
    pub(super) fn fail(self, error: Error) {
        match self {
            Self::Complete(complete, _) => complete.writer.fail(error),
            Self::Ask(ask) => ask.reply.send(Err(error)),
            Self::Ping(_) => {}
        }
    }
}

/// A model's completions that have not ended.
#[derive(Default)]
pub(super) struct RequestCounter(Arc<AtomicUsize>);

impl RequestCounter {
    pub(super) fn add(&self) -> CountedRequest {
        self.0.fetch_add(1, Ordering::Relaxed);
        CountedRequest(self.0.clone())
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts as one request until it is dropped.
pub(super) struct CountedRequest(Arc<AtomicUsize>);

impl Drop for CountedRequest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The unfinished requests of one session by id, so oldest first.
pub(super) type ActiveRequests = BTreeMap<u64, ActiveRequest>;

pub(super) struct ActiveRequest {
    pub(super) request: Request,
    pub(super) writer: TranscriptWriter,
    pub(super) state: ReplayState,
    pub(super) _counted: CountedRequest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplayState {
    /// Not sent to a worker yet.
    Queued,
    Sent,
    /// It was running when its worker died, and may have caused that. Suspects are replayed one at a time.
    Suspect,
    /// The worker died again during its replay while other requests were running. It is replayed first and alone.
    Quarantined,
}

/// An event of a running session.
pub(super) enum WorkerEvent {
    Started {
        pid: Option<u32>,
    },
    /// Progress of a load, in bytes of weights.
    Loading {
        done: u64,
        total: u64,
    },
    Ready(ModelInfo),
    /// The decoder sent a message.
    Activity(Instant),
}

/// The last message of a session: why it ended, and the work that the next session takes over.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct WorkerEnded {
    pub(super) session: u64,
    pub(super) requests: ActiveRequests,
    /// Commands that the next session may send: those not sent yet, and questions without an answer when the worker was unloaded.
    pub(super) unsent: Vec<Command>,
    pub(super) reason: ExitReason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExitReason {
    /// The worker ended, or had to be killed, without being asked to end.
    Died(String),
    /// The worker can't load its model, or has another wire version. A restart would fail the same way.
    LoadFailed(Error),
    /// It had no work for the keep-alive time.
    Idle,
    /// The ModelActor closed the command channel.
    CommandsClosed,
}
