//! Starts and joins the threads of a worker, and reports their panics.

use super::{
    decoder,
    messages::{INBOX_CAPACITY, Outbox},
    probe::ActivityProbe,
    prompter, receiver,
};
use crate::actors::{FromWorker, ToWorker};
use crate::models::Embedded;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    thread,
};

/// Runs a worker on the calling thread and two more. Returns when the inbox and both threads have ended.
pub fn run(inbox: impl IntoIterator<Item = ToWorker>, outbox: Outbox, embedded: Option<Embedded>) {
    let (to_decoder, decoder_inbox) = mpsc::sync_channel(INBOX_CAPACITY);
    let (to_prompter, prompter_inbox) = mpsc::sync_channel(INBOX_CAPACITY);
    let probe = ActivityProbe::default();
    let decoder = {
        let (decoder_outbox, probe) = (outbox.clone(), probe.clone());
        spawn_stage("decoder", &outbox, move || decoder::run(decoder_inbox, decoder_outbox, probe, embedded))
    };
    let prompter = {
        let (to_decoder, prompter_outbox) = (to_decoder.clone(), outbox.clone());
        spawn_stage("prompter", &outbox, move || prompter::run(prompter_inbox, to_decoder, prompter_outbox, probe, embedded))
    };
    receiver::run(inbox, &outbox, to_prompter, to_decoder);
    for thread in [prompter, decoder].into_iter().flatten() {
        // A panic was reported where it was caught.
        let _ = thread.join();
    }
}

/// Starts a thread that the worker can't run without. If it panics, a message reports that to the front, which then ends the
/// worker.
fn spawn_stage(name: &'static str, outbox: &Outbox, body: impl FnOnce() + Send + 'static) -> Option<thread::JoinHandle<()>> {
    let report = outbox.clone();
    let guarded = move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            let _ = report.send(FromWorker::Broken { cause: format!("{name} panicked{}", panic_message(panic.as_ref())) });
        }
    };
    match thread::Builder::new().name(name.into()).spawn(guarded) {
        Ok(thread) => Some(thread),
        Err(error) => {
            let _ = outbox.send(FromWorker::Broken { cause: format!("{name} could not be started: {error}") });
            None
        }
    }
}

/// The message of a panic, unless it was formatted: a formatted message may quote a prompt.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic.downcast_ref::<&'static str>().map(|message| format!(": {message}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::messages::Disconnected;
    use super::*;

    fn reported(body: impl FnOnce() + Send + 'static) -> Option<FromWorker> {
        let (sender, messages) = mpsc::sync_channel(1);
        let outbox = Outbox::new(move |message| sender.send(message).map_err(|_| Disconnected));
        spawn_stage("decoder", &outbox, body).unwrap().join().unwrap();
        messages.try_recv().ok()
    }

    #[test]
    fn a_panic_is_reported_without_text_that_it_may_have_read() {
        let prompt = String::from("a secret");
        let broken = |cause: &str| Some(FromWorker::Broken { cause: cause.into() });
        assert_eq!(reported(|| {}), None);
        assert_eq!(reported(|| panic!("a cache of the wrong shape")), broken("decoder panicked: a cache of the wrong shape"));
        assert_eq!(reported(move || panic!("no {prompt}")), broken("decoder panicked"));
    }
}
