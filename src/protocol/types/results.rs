//! The results of methods, and the values of `$/progress`.

use super::sampling::SamplingResult;
use crate::actors::{FinishReason, Rendered, Sampled, Sampling, Usage};
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CompletionResult {
    pub(crate) text: String,
    finish_reason: &'static str,
    usage: UsageResult,
    sampling: SamplingResult,
    timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<TokenLogprob>>,
}

impl CompletionResult {
    pub(crate) fn new(text: String, reason: FinishReason, usage: Usage, applied: Sampling, logprobs: Option<Vec<TokenLogprob>>) -> Self {
        Self {
            text,
            finish_reason: match reason {
                FinishReason::Eos => "eos",
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::Cancelled => "cancelled",
            },
            usage: UsageResult {
                prompt_tokens: usage.prompt_tokens,
                cached_tokens: usage.cached_tokens,
                completion_tokens: usage.completion_tokens,
            },
            sampling: applied.into(),
            timings: Timings {
                queue_ms: milliseconds(usage.queue_us),
                prefill_ms: milliseconds(usage.prefill_us),
                decode_ms: milliseconds(usage.decode_us),
                tokens_per_second: match usage.decode_us {
                    0 => 0.0,
                    decode_us => (f64::from(usage.completion_tokens) * 1e8 / decode_us as f64).round() / 100.0,
                },
            },
            logprobs,
        }
    }
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UsageResult {
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Timings {
    queue_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
    tokens_per_second: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct TokenLogprob {
    token: u32,
    logprob: f32,
    top: Vec<Alternative>,
}

#[derive(Clone, Debug, Serialize)]
struct Alternative {
    token: u32,
    logprob: f32,
}

/// Stands for negative infinity, which JSON lacks: the logprob of an impossible token.
const LOGPROB_MIN: f32 = -9999.0;

/// The tokens of a completion as wire types.
pub(crate) fn logprobs(tokens: Vec<Sampled>) -> impl Iterator<Item = TokenLogprob> {
    tokens.into_iter().map(|sampled| TokenLogprob {
        token: sampled.token,
        logprob: sampled.logprob.max(LOGPROB_MIN),
        top: sampled.top.into_iter().map(|(token, logprob)| Alternative { token, logprob: logprob.max(LOGPROB_MIN) }).collect(),
    })
}

/// The text of one or more decode steps of a streamed completion. `seq` is the number of the first of them. It rises by more
/// than one after a partial result that joins several steps.
#[derive(Debug, Serialize)]
pub(crate) struct PartialResult {
    pub(crate) seq: u64,
    pub(crate) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<Vec<TokenLogprob>>,
}

/// LSP's work-done progress.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub(crate) enum WorkDoneProgress {
    Begin { title: String, percentage: u8 },
    Report { percentage: u8 },
    End { message: String },
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CancelResult {
    pub(crate) completion_tokens: u32,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct TokenizeResult {
    pub(crate) tokens: Vec<u32>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct DetokenizeResult {
    pub(crate) text: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct RenderResult {
    text: String,
    tokens: Vec<u32>,
    control: Vec<u32>,
}

impl From<Rendered> for RenderResult {
    fn from(rendered: Rendered) -> Self {
        Self { text: rendered.text, tokens: rendered.tokens, control: rendered.control }
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitializeResult {
    capabilities: Capabilities,
    server_info: ServerInfo,
}

/// Empty: no LSP capability is supported yet.
#[derive(Clone, Debug, Serialize)]
struct Capabilities {}

#[derive(Clone, Debug, Serialize)]
struct ServerInfo {
    name: &'static str,
    version: &'static str,
}

impl InitializeResult {
    pub(crate) fn new() -> Self {
        let server_info = ServerInfo { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION") };
        Self { capabilities: Capabilities {}, server_info }
    }
}
