//! What can end a request besides its own text.

use crate::models;
use serde::{Deserialize, Serialize};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] models::Error),
    #[error("unknown model {name:?}; known are {}", known.join(", "))]
    UnknownModel { name: String, known: Vec<String> },
    #[error("{limit} requests are in hand already; try again when one has ended")]
    Overloaded { limit: usize },
    /// What panicked for this request alone.
    #[error("{stage} panicked: {cause}")]
    StagePanicked { stage: String, cause: String },
    /// The process that computed this request is gone.
    #[error("the worker of model {model:?} was lost: {cause}")]
    WorkerLost { model: String, cause: String },
    /// The restart limit is reached; an explicit load tries again.
    #[error("model {model:?} has failed: {cause}; load it again to retry")]
    ModelFailed { model: String, cause: String },
    #[error("model {model:?} is being unloaded")]
    Unloading { model: String },
    #[error("shutting down")]
    ShuttingDown,
    /// A defect of ours; the log has its cause.
    #[error("internal error: {0}")]
    Internal(String),
}
