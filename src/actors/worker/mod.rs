//! A worker: the three threads that run one model. No actix, no tokio.
//!
//! `receiver` reads the link and ends the process at its EOF. `prompter` renders and tokenizes prompts. `decoder` loads the
//! model and owns everything that computes.

mod batch;
mod decoder;
mod messages;
mod pipe;
mod probe;
mod prompter;
mod receiver;
mod threads;

pub use messages::{Disconnected, Outbox};
pub use pipe::{log_panics_without_payload, over_pipe};
pub use threads::run;
