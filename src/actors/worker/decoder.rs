//! Loads the model, then owns everything that computes.

use super::{Outbox, ToDecoder};
use crate::models::Embedded;
use std::sync::mpsc::Receiver;

pub(super) fn run(_inbox: Receiver<ToDecoder>, _outbox: Outbox, _embedded: Option<Embedded>) {
    todo!()
}
