//! What the house promises, proven through `Runtime` and a real worker process.
//!
//! Expectations come from running the same request alone and cold, so they hold for any weights.

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
