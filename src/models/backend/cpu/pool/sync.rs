//! The primitives that the pool is built from: std's, or loom's for model checking.

pub(super) use std::sync::atomic::Ordering::*;

#[cfg(not(loom))]
pub(super) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, fence},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

#[cfg(loom)]
pub(super) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, fence},
    sync::{Arc, Mutex},
    thread,
};

/// loom has no clock. Every time limit has passed, so threads park immediately and every wait starts backup tasks.
#[cfg(loom)]
#[derive(Clone, Copy)]
pub(super) struct Instant;

#[cfg(loom)]
impl Instant {
    pub(super) fn now() -> Self {
        Self
    }

    pub(super) fn elapsed(self) -> std::time::Duration {
        std::time::Duration::MAX
    }
}
