//! The messages between front and worker, encoded with postcard.

use super::{Answer, DecoderStatus, End, Question, Replay, Request, Result, Step};
use crate::models::{ModelInfo, ModelSource, Settings};
use serde::{Deserialize, Serialize};

/// Version of the two enums below. A worker sends it in its first frame, and the front refuses any other.
pub const WIRE_VERSION: u32 = 2;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    Load {
        source: ModelSource,
        settings: Settings,
    },
    /// Requests a model's metadata without loading its weights. Answered with `Loaded`.
    Inspect {
        source: ModelSource,
        settings: Settings,
    },
    Generate {
        id: u64,
        request: Request,
        replay: Replay,
    },
    Cancel {
        id: u64,
    },
    Ask {
        id: u64,
        question: Question,
    },
    Ping {
        id: u64,
    },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    Hello {
        version: u32,
    },
    /// Progress of a load, in bytes of weights.
    Loading {
        done: u64,
        total: u64,
    },
    /// The answer to `Load` and to `Inspect`.
    Loaded(Result<ModelInfo>),
    Step {
        id: u64,
        step: Step,
    },
    End {
        id: u64,
        end: End,
    },
    Answer {
        id: u64,
        answer: Result<Answer>,
    },
    Pong {
        id: u64,
        status: DecoderStatus,
    },
    /// The last message of a worker after one of its threads panicked.
    Broken {
        cause: String,
    },
}
