//! What the house promises, proven through `Runtime` and a real worker process.
//!
//! Expectations come from running the same request alone and cold, so they hold for any weights.

mod broken;
mod cache;
mod cancel;
mod control;
mod ends;
mod formats;
mod life;
mod replay;
mod sampling;
mod streams;
mod support;
#[path = "../protocol/terabyte.rs"]
mod terabyte;
