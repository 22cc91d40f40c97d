//! The JSON-RPC server, over any transport that carries whole messages. It depends on `actors`, never on `models`.
//!
//! ```text
//! transport (stdio, http ─▶ ws) ─▶ connection ─▶ peer ─▶ api ─▶ types ─▶ actors::Runtime
//!              │                       ▲          │      │
//!            guard                     │      envelope   │
//!                                      └── outbox ◀── call
//! ```
#![forbid(unsafe_code)]

pub mod api;
mod call;
mod completion_stream;
pub mod connection;
mod envelope;
pub mod error;
pub mod guard;
mod lifecycle;
mod model_load;
mod parent;
mod peer;
mod response;
#[cfg(test)]
mod tests;
pub mod token;
pub mod transport;
mod types;

pub use api::Api;
pub use connection::{ConnectionOptions, serve};
pub use error::{ErrorKind, FrameError, ResponseError};
pub use guard::Guard;
pub use lifecycle::CloseReason;
pub use token::{Token, TokenFile};
