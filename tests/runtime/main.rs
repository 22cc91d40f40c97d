//! The library's public API: `Runtime` with a real worker process.
//!
//! Expected output comes from the same request run alone without a prefix cache, so the tests hold for any weights.

mod broken_models;
mod cancel;
mod concurrent_streams;
mod control_token_injection;
mod element_types;
mod finish_reasons;
#[path = "../protocol/oversized_model.rs"]
mod oversized_model;
mod prefix_cache;
mod replay;
mod sampling;
mod support;
mod worker_restart;
