//! What the prompter is at, for the decoder to tell: a thread that stands still can't say so itself.

use crate::actors::PrompterActivity;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

#[derive(Clone, Default)]
pub(super) struct ActivityProbe(Arc<Mutex<Option<(u64, Instant)>>>);

impl ActivityProbe {
    /// Does this work for the request or question of this id.
    pub(super) fn during<T>(&self, id: u64, work: impl FnOnce() -> T) -> T {
        *self.lock() = Some((id, Instant::now()));
        let done = work();
        *self.lock() = None;
        done
    }

    pub(super) fn activity(&self) -> Option<PrompterActivity> {
        self.lock().map(|(id, since)| PrompterActivity { id, elapsed: since.elapsed() })
    }

    fn lock(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        // It is held to read or write one value.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
