//! The client side of the workers: admission, routing, supervision, transcripts. It never opens a model's files.

mod command;
mod context;
mod in_flight;
mod inspect;
mod link;
mod model;
mod restart_policy;
mod runtime;
mod session;
mod supervisor;
#[cfg(test)]
pub(super) mod tests;
mod transcript;

pub use runtime::Runtime;
pub use transcript::{Completion, Reader, Update};
