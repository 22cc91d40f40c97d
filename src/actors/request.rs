//! What travels: a request forward, steps and one end back, and the frames between front and worker.
//!
//! Frames are postcard, so no `flatten`, `untagged`, skipped fields or JSON values.

use super::{Error, Result};
use crate::models::{FinishReason, ModelInfo, ModelSource, Prompt, Sampled, Sampling, Settings};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One completion, validated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub model: String,
    pub prompt: Prompt,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub tokens_max: u32,
    /// Report log-probabilities, with this many alternatives per token.
    pub logprobs: Option<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Prompt tokens whose keys and values came from the prefix cache.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    pub queue_us: u64,
    pub prefill_us: u64,
    pub decode_us: u64,
}

/// `tokens` are all that were sampled for this piece, also while their text is held back: replay needs them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub text: String,
    pub tokens: Vec<Sampled>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum End {
    Done {
        reason: FinishReason,
        usage: Usage,
        /// The sampling really applied.
        applied: Sampling,
    },
    Failed(Error),
}

/// Where a request stood when its worker died: its next life goes on from here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    pub tokens: Vec<Sampled>,
    pub delivered_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Question {
    Tokenize(String),
    Detokenize(Vec<u32>),
    Render(Prompt),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Tokens(Vec<u32>),
    Text(String),
    Rendered(Rendered),
}

/// A prompt as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendered {
    pub text: String,
    pub tokens: Vec<u32>,
    /// Which of `tokens` are control tokens, by index.
    pub control: Vec<u32>,
}

/// The decode loop, told by itself between two steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecoderStatus {
    pub steps: u64,
    pub running: u32,
    pub waiting: u32,
    /// Sequences of the last step, and of the largest one.
    pub step_sequences: u32,
    pub step_sequences_max: u32,
    /// Rows (tokens) computed since the start: what a cancel is measured by.
    pub rows: u64,
    pub cache_entries: u32,
    pub cache_bytes: u64,
    pub cache_budget_bytes: u64,
    /// Keys and values of the running sequences.
    pub running_bytes: u64,
    /// Since the last step ended; `None` before the first.
    pub last_step_us: Option<u64>,
    /// What the prompter is at, if anything.
    pub prompting: Option<Prompting>,
}

/// The request or question that a prompter is at, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompting {
    pub id: u64,
    pub time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelState {
    Unloaded,
    Loading,
    Ready,
    /// Its worker died, and the next one is not ready yet.
    Restarting,
    /// Loaded, and its decode loop does not answer. Told by who asks it, as `status` does.
    Stalled,
    Failed,
}

/// A death of a model's worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    pub cause: String,
    pub ago: Duration,
}

#[derive(Clone, Debug)]
pub struct ModelStatus {
    pub name: String,
    pub source: ModelSource,
    pub state: ModelState,
    pub worker_pid: Option<u32>,
    pub in_flight: usize,
    /// Deaths of this model's workers since the start, and the last of them, newest last.
    pub restarts: u32,
    pub deaths: Vec<Death>,
    /// Since its decode loop was last heard; `None` when not loaded.
    pub last_sign: Option<Duration>,
    /// What is known since it was first loaded.
    pub info: Option<ModelInfo>,
    /// `None` when not loaded, or when the decode loop did not answer in time.
    pub decoder: Option<DecoderStatus>,
}

impl ModelStatus {
    pub fn last_cause(&self) -> Option<&str> {
        self.deaths.last().map(|death| death.cause.as_str())
    }
}

#[derive(Clone, Debug)]
pub struct Status {
    pub uptime: Duration,
    pub requests_in_flight: usize,
    pub requests_limit: usize,
    pub models: Vec<ModelStatus>,
}

/// The version of the two enums below; the first frame of a worker says it, and another is refused.
pub const WIRE: u32 = 2;

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
        wire: u32,
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
