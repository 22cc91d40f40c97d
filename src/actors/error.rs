//! The errors that can end a request.

use crate::models;
use serde::{Deserialize, Serialize};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] models::Error),
    #[error("unknown model {name:?}; known models: {}", known.join(", "))]
    UnknownModel { name: String, known: Vec<String> },
    #[error("{limit} requests are already in flight; try again when one has ended")]
    Overloaded { limit: usize },
    /// A stage of the worker panicked on this request. The worker and its other requests continue.
    #[error("{stage} panicked: {cause}")]
    StagePanicked { stage: String, cause: String },
    /// The worker that computed this request ended before the request did.
    #[error("the worker of model {model:?} was lost: {cause}")]
    WorkerLost { model: String, cause: String },
    /// The restart limit was reached. An explicit load retries.
    #[error("model {model:?} has failed: {cause}; load it again to retry")]
    ModelFailed { model: String, cause: String },
    #[error("model {model:?} is being unloaded")]
    Unloading { model: String },
    #[error("shutting down")]
    ShuttingDown,
    /// A bug in Souffleur; the log has the cause.
    #[error("internal error: {0}")]
    Internal(String),
}
