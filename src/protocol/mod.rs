//! JSON-RPC over anything that carries whole messages. Knows no model.
//!
//! ```text
//! transport (stdio, ws) ─▶ connection ─▶ envelope ─▶ api ─▶ types ─▶ actors::Runtime
//!        ▲                     │                      │
//!   http ─ guard               └──── outbox ◀── call ◀┘
//! ```
#![forbid(unsafe_code)]

mod answer;
pub mod api;
mod call;
pub mod connection;
mod envelope;
pub mod error;
pub mod guard;
mod lifecycle;
#[cfg(test)]
mod page;
mod parent;
mod peer;
mod respond;
#[cfg(test)]
mod tests;
pub mod token;
pub mod transport;
mod types;

pub use api::Api;
pub use connection::{Closed, Malformed, Rules, serve};
pub use error::{Fault, Kind};
pub use guard::Guard;
pub use token::{Token, TokenFile};
