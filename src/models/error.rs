//! What can go wrong in pure compute: bad model files, prompts that don't fit, memory.

use serde::{Deserialize, Serialize};

pub type Result<T> = std::result::Result<T, Error>;

/// Every variant carries what its reader needs to act.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    #[error("prompt of {needed} tokens leaves no room for an answer in the context of {limit}")]
    ContextOverflow { needed: u64, limit: u64 },
    /// A model file that is broken or says something impossible; `field` is a key, a tensor or an offset.
    #[error("{file}: {field}: {reason}")]
    ModelFile { file: String, field: String, reason: String },
    /// Loading is strict: every tensor used, every parameter filled.
    #[error("weights do not match the network: missing [{}], unexpected [{}]", missing.join(", "), unexpected.join(", "))]
    Weights { missing: Vec<String>, unexpected: Vec<String> },
    #[error("the model needs {needed} bytes of memory, {free} are free")]
    Memory { needed: u64, free: u64 },
    #[error("{0}")]
    Unsupported(String),
    /// A parameter that only the loaded model can judge, such as a token id beyond its vocabulary.
    #[error("{name}: {reason}")]
    Parameter { name: String, reason: String },
    /// The network computed a logit that is infinite or not a number.
    #[error("the model computed logits that are not finite numbers; its weights may be damaged or of a format that overflows")]
    NonFiniteLogits,
}

/// Bytes of what is told of a file's own words: they may be as long as the file.
const REASON_BYTES_MAX: usize = 1024;
/// Names of a list that are told.
const NAMES_MAX: usize = 20;

impl Error {
    pub(crate) fn file(file: impl Into<String>, field: impl Into<String>, reason: impl ToString) -> Self {
        Self::ModelFile { file: file.into(), field: truncated(field.into()), reason: truncated(reason.to_string()) }
    }

    /// The byte stays when a name that is as long as the file is cut.
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

fn truncated(mut text: String) -> String {
    if text.len() > REASON_BYTES_MAX {
        let end = (0..=REASON_BYTES_MAX).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}
