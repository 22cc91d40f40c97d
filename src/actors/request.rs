//! What travels: a request forward, steps and one end back, and the frames between front and worker.
//!
//! Frames are postcard, so no `flatten`, `untagged`, skipped fields or JSON values.

use super::Error;
use crate::models::{FinishReason, Prompt, Sampled, Sampling};
use serde::{Deserialize, Serialize};

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
