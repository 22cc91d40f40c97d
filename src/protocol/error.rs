//! Errors as they are sent to the peer: a JSON-RPC code, a kind that never changes its meaning, a message, and data.

use crate::actors::{Error, ModelError, Usage};
use jsonrpsee_types::ErrorObjectOwned;
use serde_json::{Map, Value, json};

/// Why a message could not be read from its transport. After `BadHeader` and `Truncated` the next message can't be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the message has more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the message is not UTF-8")]
    NotUtf8,
    #[error("{0}")]
    BadHeader(String),
    #[error("the input ended inside a message")]
    Truncated,
}

/// The kind of an error. Its name goes on the wire as `data.kind` and never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    ParseError,
    InvalidRequest,
    IdInFlight,
    MessageTooLarge,
    BatchTooLarge,
    BatchNotAllowed,
    InitializeNotFirst,
    AfterShutdown,
    UnknownMethod,
    InvalidParams,
    Internal,
    Cancelled,
    Overloaded,
    TooManyCalls,
    UnknownCall,
    UnknownModel,
    ModelFailed,
    WorkerLost,
    StagePanicked,
    Unloading,
    ShuttingDown,
    ContextOverflow,
    ModelFile,
    WeightsMismatch,
    OutOfMemory,
    Unsupported,
    NonFiniteLogits,
}

impl ErrorKind {
    pub const ALL: [Self; 27] = [
        Self::ParseError,
        Self::InvalidRequest,
        Self::IdInFlight,
        Self::MessageTooLarge,
        Self::BatchTooLarge,
        Self::BatchNotAllowed,
        Self::InitializeNotFirst,
        Self::AfterShutdown,
        Self::UnknownMethod,
        Self::InvalidParams,
        Self::Internal,
        Self::Cancelled,
        Self::Overloaded,
        Self::TooManyCalls,
        Self::UnknownCall,
        Self::UnknownModel,
        Self::ModelFailed,
        Self::WorkerLost,
        Self::StagePanicked,
        Self::Unloading,
        Self::ShuttingDown,
        Self::ContextOverflow,
        Self::ModelFile,
        Self::WeightsMismatch,
        Self::OutOfMemory,
        Self::Unsupported,
        Self::NonFiniteLogits,
    ];

    /// The code, the name, and whether the same request may succeed later (`data.retryable`).
    ///
    /// Codes -32700 to -32600 are JSON-RPC's, -32800 is LSP's. -32099 to -32050 are our own, in the part of JSON-RPC's
    /// range for servers that LSP does not use.
    pub const fn spec(self) -> (i32, &'static str, bool) {
        match self {
            Self::ParseError => (-32700, "parse_error", false),
            Self::InvalidRequest => (-32600, "invalid_request", false),
            Self::IdInFlight => (-32600, "id_in_flight", false),
            Self::MessageTooLarge => (-32600, "message_too_large", false),
            Self::BatchTooLarge => (-32600, "batch_too_large", false),
            Self::BatchNotAllowed => (-32600, "batch_not_allowed", false),
            Self::InitializeNotFirst => (-32600, "initialize_not_first", false),
            Self::AfterShutdown => (-32600, "after_shutdown", false),
            Self::UnknownMethod => (-32601, "unknown_method", false),
            Self::InvalidParams => (-32602, "invalid_params", false),
            Self::Internal => (-32603, "internal", false),
            Self::Cancelled => (-32800, "cancelled", true),
            Self::Overloaded => (-32050, "overloaded", true),
            Self::TooManyCalls => (-32051, "too_many_calls", true),
            Self::UnknownCall => (-32052, "unknown_call", false),
            Self::UnknownModel => (-32060, "unknown_model", false),
            Self::ModelFailed => (-32061, "model_failed", false),
            Self::WorkerLost => (-32062, "worker_lost", true),
            Self::StagePanicked => (-32063, "stage_panicked", false),
            Self::Unloading => (-32064, "unloading", true),
            Self::ShuttingDown => (-32065, "shutting_down", false),
            Self::ContextOverflow => (-32070, "context_overflow", false),
            Self::ModelFile => (-32071, "model_file", false),
            Self::WeightsMismatch => (-32072, "weights_mismatch", false),
            Self::OutOfMemory => (-32073, "out_of_memory", true),
            Self::Unsupported => (-32074, "unsupported", false),
            Self::NonFiniteLogits => (-32075, "non_finite_logits", false),
        }
    }
}

/// Longest text in an error, in characters: input is not echoed in full.
const TEXT_CHARACTERS_MAX: usize = 400;

fn truncated(mut text: String) -> String {
    if let Some((cut, _)) = text.char_indices().nth(TEXT_CHARACTERS_MAX) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// The `error` member of a response, as JSON-RPC and LSP name it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ResponseError {
    pub kind: ErrorKind,
    pub message: String,
    /// Members of `error.data` beside `kind` and `retryable`.
    pub data: Map<String, Value>,
}

impl ResponseError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: truncated(message.into()), data: Map::new() }
    }

    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(text) => Value::String(truncated(text)),
            other => other,
        };
        self.data.insert(name.into(), value);
        self
    }

    pub(crate) fn parameter(name: &str, reason: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::InvalidParams, format!("{name}: {reason}")).with("parameter", name)
    }

    pub(crate) fn cancelled(usage: Usage) -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled").with(
            "usage",
            json!({
                "promptTokens": usage.prompt_tokens,
                "cachedTokens": usage.cached_tokens,
                "completionTokens": usage.completion_tokens,
            }),
        )
    }

    pub(crate) fn object(self) -> ErrorObjectOwned {
        let (code, name, retryable) = self.kind.spec();
        let mut data = self.data;
        data.insert("kind".into(), name.into());
        data.insert("retryable".into(), retryable.into());
        ErrorObjectOwned::owned(code, self.message, Some(data))
    }
}

impl From<ResponseError> for ErrorObjectOwned {
    fn from(error: ResponseError) -> Self {
        error.object()
    }
}

impl From<Error> for ResponseError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Model(error) => error.into(),
            Error::UnknownModel { name, known } => Self::new(ErrorKind::UnknownModel, message).with("model", name).with("known", known),
            Error::Overloaded { limit } => Self::new(ErrorKind::Overloaded, message).with("limit", limit),
            Error::StagePanicked { stage, .. } => Self::new(ErrorKind::StagePanicked, message).with("stage", stage),
            Error::WorkerLost { model, .. } => Self::new(ErrorKind::WorkerLost, message).with("model", model),
            Error::ModelFailed { model, .. } => Self::new(ErrorKind::ModelFailed, message).with("model", model),
            Error::Unloading { model } => Self::new(ErrorKind::Unloading, message).with("model", model),
            Error::ShuttingDown => Self::new(ErrorKind::ShuttingDown, message),
            Error::Internal(cause) => {
                tracing::error!(cause, "internal error");
                Self::new(ErrorKind::Internal, message)
            }
        }
    }
}

impl From<ModelError> for ResponseError {
    fn from(error: ModelError) -> Self {
        let message = error.to_string();
        match error {
            ModelError::ContextOverflow { needed, limit } => {
                Self::new(ErrorKind::ContextOverflow, message).with("needed", needed).with("limit", limit)
            }
            ModelError::ModelFile { file, field, .. } => Self::new(ErrorKind::ModelFile, message).with("file", file).with("field", field),
            ModelError::Weights { missing, unexpected } => {
                Self::new(ErrorKind::WeightsMismatch, message).with("missing", missing).with("unexpected", unexpected)
            }
            ModelError::Memory { needed, free } => Self::new(ErrorKind::OutOfMemory, message).with("needed", needed).with("free", free),
            ModelError::Unsupported(_) => Self::new(ErrorKind::Unsupported, message),
            ModelError::Parameter { name, reason } => Self::parameter(&camel_case(&name), reason),
            ModelError::NonFiniteLogits => Self::new(ErrorKind::NonFiniteLogits, message),
        }
    }
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(error: impl Into<ResponseError>) -> Value {
        serde_json::to_value(error.into().object()).unwrap()
    }

    #[test]
    fn names_are_unique_and_own_codes_are_in_range() {
        let mut names: Vec<_> = ErrorKind::ALL.iter().map(|kind| kind.spec().1).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorKind::ALL.len());
        for kind in ErrorKind::ALL {
            let (code, name, _) = kind.spec();
            let standard = [-32700, -32600, -32601, -32602, -32603, -32800].contains(&code);
            assert!(standard || (-32099..=-32050).contains(&code), "{name} has code {code}");
        }
    }

    #[test]
    fn the_wire_error_has_kind_numbers_and_retryable() {
        assert_eq!(
            wire(Error::Model(ModelError::ContextOverflow { needed: 3000, limit: 2048 })),
            json!({ "code": -32070, "message": "prompt of 3000 tokens leaves no room for a completion in the context of 2048",
                "data": { "kind": "context_overflow", "retryable": false, "needed": 3000, "limit": 2048 } })
        );
        let known = vec!["embedded".to_owned()];
        assert_eq!(
            wire(Error::UnknownModel { name: "gpt".into(), known })["data"],
            json!({ "kind": "unknown_model", "retryable": false, "model": "gpt", "known": ["embedded"] })
        );
        assert_eq!(
            wire(Error::Model(ModelError::Parameter { name: "logit_bias".into(), reason: "no token 9".into() })),
            json!({ "code": -32602, "message": "logitBias: no token 9",
                "data": { "kind": "invalid_params", "retryable": false, "parameter": "logitBias" } })
        );
    }
}
