//! Pure compute: a decoder over a backend, and what one sequence needs. No tokio, no actix, no sockets.

mod error;
mod request;

pub use error::{Error, Result};
pub use request::{
    Activations, Card, Embedded, File, FimOrder, FinishReason, Message, ModelSource, Prompt, Role, Sampled, Sampling, Settings,
};
