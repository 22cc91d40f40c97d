//! What all models' actors share.

use super::link::Launch;
use crate::actors::Error;
use crate::config::Config;

/// Messages of an actor beside the requests in hand: loads, unloads and status of as many connections.
const MAILBOX: usize = 64;

pub(super) struct House {
    pub(super) config: Config,
    pub(super) launch: Launch,
}

impl House {
    /// An actor's mailbox never holds more than the requests that have tickets, and these.
    pub(super) fn mailbox(&self) -> usize {
        self.config.limits.requests_in_flight + MAILBOX
    }

    pub(super) fn overloaded(&self) -> Error {
        Error::Overloaded { limit: self.config.limits.requests_in_flight }
    }

    pub(super) fn unknown(&self, name: &str) -> Error {
        let known = self.config.models.iter().map(|model| model.name.clone()).collect();
        Error::UnknownModel { name: name.to_owned(), known }
    }
}
