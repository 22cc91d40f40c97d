//! No crash, kill or stall loses a byte or hangs a request: the real program and real workers, killed, stopped and
//! left alone. `cargo test` runs a few of each; docs/reliability.md has the commands of the full runs.

mod ends;
mod idle;
mod kills;
mod soak;
mod stall;
mod support;

// Not everything in them is used here.
#[allow(dead_code)]
#[path = "../runtime/support.rs"]
mod house;
#[allow(dead_code)]
#[path = "../protocol/support.rs"]
mod program;
