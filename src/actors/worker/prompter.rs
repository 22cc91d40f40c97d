//! Renders and encodes.

use super::{Outbox, ToDecoder, ToPrompter};
use crate::models::Embedded;
use std::sync::mpsc::{Receiver, SyncSender};

pub(super) fn run(_inbox: Receiver<ToPrompter>, _to_decoder: SyncSender<ToDecoder>, _outbox: Outbox, _embedded: Option<Embedded>) {
    todo!()
}
