//! Requests and their results: a completion request with its steps and end, and a question with its answer.
//!
//! These types are encoded with postcard, which supports no `flatten`, `untagged`, skipped fields or JSON values.

use super::Error;
use crate::models::{FinishReason, Prompt, Sampled, Sampling};
use serde::{Deserialize, Serialize};

/// A validated completion request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The name of a configured model.
    pub model: String,
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// Stop sequences: the text ends before the first occurrence of one.
    pub stop: Vec<String>,
    /// The most tokens to generate.
    pub tokens_max: u32,
    /// Report log-probabilities with this many alternatives per token; `None` reports none.
    pub logprobs: Option<u8>,
}

/// Token counts and timings of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Prompt tokens that were in the prefix cache.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    /// Microseconds from arrival in the worker to admission to the batch.
    pub queue_us: u64,
    /// Microseconds from admission to the first token.
    pub prefill_us: u64,
    /// Microseconds from the first token to the end.
    pub decode_us: u64,
}

/// Output of one decode step. `tokens` includes those whose text is held back for a stop sequence: replay needs them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub text: String,
    pub tokens: Vec<Sampled>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum End {
    Done {
        reason: FinishReason,
        usage: Usage,
        /// The sampling parameters that were used, with all defaults filled in.
        applied: Sampling,
    },
    Failed(Error),
}

/// The output of a request before its worker died. The next worker continues from here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    pub tokens: Vec<Sampled>,
    /// Bytes of the text that is already in the transcript.
    pub delivered_bytes: u64,
}

/// A request that needs only the tokenizer and the prompt template. It gets one `Answer`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Question {
    Tokenize(String),
    Detokenize(Vec<u32>),
    /// Renders and tokenizes a prompt as a completion would.
    Render(Prompt),
}

/// The result of a `Question`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Tokens(Vec<u32>),
    Text(String),
    Rendered(Rendered),
}

/// A prompt after template and tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendered {
    pub text: String,
    pub tokens: Vec<u32>,
    /// Indices of the control tokens in `tokens`.
    pub control: Vec<u32>,
}
