//! The errors of inference: invalid model files, prompts that do not fit, too little memory.

use serde::{Deserialize, Serialize};

pub type Result<T> = std::result::Result<T, Error>;

/// Errors are sent over the worker's pipe, so every variant is plain data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    #[error("prompt of {needed} tokens leaves no room for a completion in the context of {limit}")]
    ContextOverflow { needed: u64, limit: u64 },
    /// An invalid or unsupported model file; `field` is a key, a tensor or a header field, with its offset where it has one.
    #[error("{file}: {field}: {reason}")]
    ModelFile { file: String, field: String, reason: String },
    /// Loading is strict: every parameter must have a tensor, and every tensor must be a parameter.
    #[error("weights do not match the network: missing [{}], unexpected [{}]", missing.join(", "), unexpected.join(", "))]
    Weights { missing: Vec<String>, unexpected: Vec<String> },
    #[error("the model needs {needed} bytes of memory, {free} are free")]
    Memory { needed: u64, free: u64 },
    #[error("{0}")]
    Unsupported(String),
    /// A request parameter that is invalid for the loaded model, such as a token id beyond its vocabulary.
    #[error("{name}: {reason}")]
    Parameter { name: String, reason: String },
    /// The network computed a logit that is infinite or not a number.
    #[error("the model computed logits that are not finite numbers; its weights may be damaged or of a format that overflows")]
    NonFiniteLogits,
}

/// Bytes of a field or reason that quotes a file: a name in a hostile file may be as long as the file.
const FIELD_BYTES_MAX: usize = 1024;
/// Tensor names that an error lists.
const NAMES_MAX: usize = 20;

impl Error {
    pub(crate) fn file(file: impl Into<String>, field: impl Into<String>, reason: impl ToString) -> Self {
        Self::ModelFile { file: file.into(), field: truncated(field.into()), reason: truncated(reason.to_string()) }
    }

    /// The offset is appended after truncation, so it is kept when the name is too long.
    pub(crate) fn file_at(file: impl Into<String>, field: &str, at: usize, reason: impl ToString) -> Self {
        Self::ModelFile {
            file: file.into(),
            field: format!("{} at byte {at}", truncated(field.into())),
            reason: truncated(reason.to_string()),
        }
    }

    pub(crate) fn weights(missing: Vec<String>, unexpected: Vec<String>) -> Self {
        let some = |names: Vec<String>| {
            let more = names.len().saturating_sub(NAMES_MAX);
            let more = (more > 0).then(|| format!("and {more} more"));
            names.into_iter().take(NAMES_MAX).map(truncated).chain(more).collect()
        };
        Self::Weights { missing: some(missing), unexpected: some(unexpected) }
    }
}

/// At most `FIELD_BYTES_MAX` bytes, cut at a character boundary and marked with an ellipsis.
fn truncated(mut text: String) -> String {
    if text.len() > FIELD_BYTES_MAX {
        let end = (0..=FIELD_BYTES_MAX).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}
