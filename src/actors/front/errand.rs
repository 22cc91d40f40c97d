//! What a ModelActor gives its worker's life to do, and what comes back when the life ends.

use super::transcript::{Recorder, Ticket};
use crate::actors::{Answer, DecoderStatus, Error, ModelInfo, Question, Request, Result};
use actix::Message;
use std::{collections::BTreeMap, sync::Arc};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Complete {
    /// Grows with every request of a runtime.
    pub(super) id: u64,
    pub(super) request: Request,
    pub(super) recorder: Recorder,
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Ask {
    pub(super) id: u64,
    pub(super) question: Question,
    pub(super) reply: Reply,
}

/// Where an answer goes; dropped without one it tells the asker so.
pub(super) struct Reply {
    /// Cancelled when the asker has left.
    pub(super) asker: CancellationToken,
    pub(super) to: oneshot::Sender<Result<Answer>>,
    pub(super) ticket: Ticket,
}

impl Reply {
    pub(super) fn answer(self, answer: Result<Answer>) {
        // Who hears the answer may ask again at once, so the ticket is back before.
        drop(self.ticket);
        // An asker that left wants no answer.
        let _ = self.to.send(answer);
    }
}

pub(super) enum Errand {
    Complete(Complete, InHand),
    Ask(Ask),
    /// For `status`; dropped unanswered when the model is not loaded.
    Ping(oneshot::Sender<DecoderStatus>),
}

impl Errand {
    pub(super) fn fail(self, error: Error) {
        match self {
            Self::Complete(complete, _) => complete.recorder.fail(error),
            Self::Ask(ask) => ask.reply.answer(Err(error)),
            Self::Ping(_) => {}
        }
    }
}

/// Requests of one life, oldest first.
pub(super) type InFlight = BTreeMap<u64, Flight>;

/// One of these lives as long as its request is in hand, so that they can be counted.
pub(super) type InHand = Arc<()>;

pub(super) struct Flight {
    pub(super) request: Request,
    pub(super) recorder: Recorder,
    pub(super) standing: Standing,
    pub(super) _in_hand: InHand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not yet sent to a worker.
    Held,
    Sent,
    /// It was in a worker that died, maybe by it: it is replayed in its turn, until it is past where it stood.
    Suspect,
    /// Its worker died again in its turn, but those before it were running too: it goes first, when nobody else is.
    Accused,
}

/// What a life tells while it lasts.
pub(super) enum Sign {
    Started {
        pid: Option<u32>,
    },
    /// Bytes of weights.
    Loading {
        done: u64,
        total: u64,
    },
    Ready(ModelInfo),
    /// The decoder said something.
    Heard(Instant),
}

/// A life's last message: all that it had in hand, for the next one.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct WorkerEnded {
    pub(super) life: u64,
    pub(super) in_flight: InFlight,
    /// What the worker was never given.
    pub(super) unsent: Vec<Errand>,
    pub(super) cause: Cause,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nobody told it to.
    Died(String),
    /// It could not load its model, or speaks another version: another try would end the same way.
    Refused(Error),
    /// It had nothing to do for the keep-alive time.
    Idle,
    /// Its ModelActor has no more errands for it.
    Dismissed,
}
