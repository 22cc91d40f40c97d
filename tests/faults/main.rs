//! The program, made to fail on purpose: its worker a process of its own, its peer at the other end of a real transport.
//!
//! What is tested is in `souffleur::faults`: a point that is added there is tested by being there.

mod deaths;
mod points;
mod stages;
mod stand;
#[path = "../it/support.rs"]
#[allow(dead_code, reason = "these tests need a part of what those over there do")]
mod support;
