//! The prompter's current request, which the decoder reports: a stalled thread can't report itself.

use crate::actors::PrompterActivity;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

#[derive(Clone, Default)]
pub(super) struct ActivityProbe(Arc<Mutex<Option<(u64, Instant)>>>);

impl ActivityProbe {
    /// Runs `work`, and records the id of its request or question meanwhile.
    pub(super) fn record<T>(&self, id: u64, work: impl FnOnce() -> T) -> T {
        *self.lock() = Some((id, Instant::now()));
        let result = work();
        *self.lock() = None;
        result
    }

    pub(super) fn activity(&self) -> Option<PrompterActivity> {
        self.lock().map(|(id, since)| PrompterActivity { id, elapsed: since.elapsed() })
    }

    fn lock(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        // The lock is held only to read or write one value, so a poisoned one is safe to use.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
