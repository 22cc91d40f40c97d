//! Crashes, kills, stalls, shutdown and idling of the real program and its workers: no request loses output or hangs.
//!
//! `cargo test` runs a few rounds of each; docs/reliability.md has the commands of the full runs.

mod idle;
mod shutdown;
mod soak;
mod stalled_worker;
mod support;
mod worker_kills;

#[allow(dead_code)]
#[path = "../protocol/support.rs"]
mod program;
#[allow(dead_code)]
#[path = "../runtime/support.rs"]
mod runtime;
