//! Souffleur: local code models, streamed over JSON-RPC to editors and pages.
//!
//! Three rooms, one direction: [`protocol`] → [`actors`] → [`models`].
//! `models` computes, `actors` decides who runs and what happens when it dies, `protocol` speaks
//! to peers. Embedding applications start at [`actors::Runtime`].

pub mod actors;
pub mod config;
#[doc(hidden)]
pub mod failpoints;
pub mod models;
pub mod protocol;
