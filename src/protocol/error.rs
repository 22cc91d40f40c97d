//! What a peer is told when something fails: a code, a stable kind, a sentence, and what it needs to act.

use crate::actors::{Error, ModelError, Usage};
use jsonrpsee_types::ErrorObjectOwned;
use serde_json::{Map, Value, json};

/// Every way to fail. The name goes on the wire as `data.kind` and never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
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

impl Kind {
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

    /// Code, name, and whether the same request may succeed later. -32050 to -32099 are ours: other protocols leave them free.
    pub const fn row(self) -> (i32, &'static str, bool) {
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

/// Characters of a text in an error: what the peer wrote is not sent back at length.
const TEXT_CHARACTERS: usize = 400;

fn told(mut text: String) -> String {
    if let Some((cut, _)) = text.char_indices().nth(TEXT_CHARACTERS) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// One failure, as it goes on the wire.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub kind: Kind,
    pub message: String,
    /// Members of `error.data` beside `kind` and `retryable`.
    pub data: Map<String, Value>,
}

impl Fault {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: told(message.into()), data: Map::new() }
    }

    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(text) => Value::String(told(text)),
            other => other,
        };
        self.data.insert(name.into(), value);
        self
    }

    pub(crate) fn parameter(name: &str, reason: impl std::fmt::Display) -> Self {
        Self::new(Kind::InvalidParams, format!("{name}: {reason}")).with("parameter", name)
    }

    pub(crate) fn cancelled(usage: Usage) -> Self {
        Self::new(Kind::Cancelled, "cancelled").with(
            "usage",
            json!({
                "promptTokens": usage.prompt_tokens,
                "cachedTokens": usage.cached_tokens,
                "completionTokens": usage.completion_tokens,
            }),
        )
    }

    /// The `error` member of a response.
    pub(crate) fn object(self) -> ErrorObjectOwned {
        let (code, name, retryable) = self.kind.row();
        let mut data = self.data;
        data.insert("kind".into(), name.into());
        data.insert("retryable".into(), retryable.into());
        ErrorObjectOwned::owned(code, self.message, Some(data))
    }
}

impl From<Fault> for ErrorObjectOwned {
    fn from(fault: Fault) -> Self {
        fault.object()
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Model(error) => error.into(),
            Error::UnknownModel { name, known } => Self::new(Kind::UnknownModel, message).with("model", name).with("known", known),
            Error::Overloaded { limit } => Self::new(Kind::Overloaded, message).with("limit", limit),
            Error::StagePanicked { stage, .. } => Self::new(Kind::StagePanicked, message).with("stage", stage),
            Error::WorkerLost { model, .. } => Self::new(Kind::WorkerLost, message).with("model", model),
            Error::ModelFailed { model, .. } => Self::new(Kind::ModelFailed, message).with("model", model),
            Error::Unloading { model } => Self::new(Kind::Unloading, message).with("model", model),
            Error::ShuttingDown => Self::new(Kind::ShuttingDown, message),
            Error::Internal(cause) => {
                tracing::error!(cause, "internal error");
                Self::new(Kind::Internal, message)
            }
        }
    }
}

impl From<ModelError> for Fault {
    fn from(error: ModelError) -> Self {
        let message = error.to_string();
        match error {
            ModelError::ContextOverflow { needed, limit } => {
                Self::new(Kind::ContextOverflow, message).with("needed", needed).with("limit", limit)
            }
            ModelError::ModelFile { file, field, .. } => Self::new(Kind::ModelFile, message).with("file", file).with("field", field),
            ModelError::Weights { missing, unexpected } => {
                Self::new(Kind::WeightsMismatch, message).with("missing", missing).with("unexpected", unexpected)
            }
            ModelError::Memory { needed, free } => Self::new(Kind::OutOfMemory, message).with("needed", needed).with("free", free),
            ModelError::Unsupported(_) => Self::new(Kind::Unsupported, message),
            ModelError::Parameter { name, reason } => Self::parameter(&camel_case(&name), reason),
            ModelError::NonFiniteLogits => Self::new(Kind::NonFiniteLogits, message),
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

    fn wire(error: impl Into<Fault>) -> Value {
        serde_json::to_value(error.into().object()).unwrap()
    }

    #[test]
    fn every_kind_is_named_once_and_ours_stay_in_our_range() {
        let mut names: Vec<_> = Kind::ALL.iter().map(|kind| kind.row().1).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let (code, name, _) = kind.row();
            let standard = [-32700, -32600, -32601, -32602, -32603, -32800].contains(&code);
            assert!(standard || (-32099..=-32050).contains(&code), "{name} has code {code}");
        }
    }

    #[test]
    fn an_error_says_its_kind_its_numbers_and_whether_to_retry() {
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
