//! The messages between front and worker.

use super::{Answer, DecoderStatus, End, Question, Replay, Request, Result, Step};
use crate::models::{ModelInfo, ModelSource, Settings};
use serde::{Deserialize, Serialize};

/// The version of the two enums below; the first frame of a worker says it, and another is refused.
pub const WIRE_VERSION: u32 = 2;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    Load {
        source: ModelSource,
        settings: Settings,
    },
    /// Asks for a model's facts without loading its weights; the answer is `Loaded`.
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
    /// Bytes of weights.
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
    /// The last words of a worker that can't go on, because one of its threads panicked.
    Broken {
        cause: String,
    },
}
