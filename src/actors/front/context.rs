//! State shared by the actors of one runtime.

use super::link::WorkerLauncher;
use crate::actors::Error;
use crate::config::Config;

/// Capacity of a mailbox beyond that for requests: for loads, unloads and status queries.
const CONTROL_MESSAGES: usize = 64;

pub(super) struct RuntimeContext {
    pub(super) config: Config,
    pub(super) launch: WorkerLauncher,
}

impl RuntimeContext {
    pub(super) fn mailbox_capacity(&self) -> usize {
        self.config.limits.requests_in_flight + CONTROL_MESSAGES
    }

    pub(super) fn overloaded(&self) -> Error {
        Error::Overloaded { limit: self.config.limits.requests_in_flight }
    }

    pub(super) fn unknown_model(&self, name: &str) -> Error {
        let known = self.config.models.iter().map(|model| model.name.clone()).collect();
        Error::UnknownModel { name: name.to_owned(), known }
    }
}
