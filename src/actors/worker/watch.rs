//! What the prompter is at, for the decoder to tell: a thread that stands still can't say so itself.

use crate::actors::Prompting;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

#[derive(Clone, Default)]
pub(super) struct Watch(Arc<Mutex<Option<(u64, Instant)>>>);

impl Watch {
    /// Does this work for the request or question of this id.
    pub(super) fn during<T>(&self, id: u64, work: impl FnOnce() -> T) -> T {
        *self.lock() = Some((id, Instant::now()));
        let done = work();
        *self.lock() = None;
        done
    }

    pub(super) fn look(&self) -> Option<Prompting> {
        self.lock().map(|(id, since)| Prompting { id, time: since.elapsed() })
    }

    fn lock(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        // It is held to read or write one value.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
