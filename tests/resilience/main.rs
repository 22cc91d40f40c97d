//! No crash, kill or stall loses a byte or hangs a request: the real program and real workers, killed, stopped and
//! left alone. `cargo test` runs a few of each; docs/reliability.md has the commands of the full runs.

mod idle;
mod shutdown;
mod soak;
mod stalled_worker;
mod support;
mod worker_kills;

// Not everything in them is used here.
#[allow(dead_code)]
#[path = "../protocol/support.rs"]
mod program;
#[allow(dead_code)]
#[path = "../runtime/support.rs"]
mod runtime;
