//! The worker's half: three threads, `wire`, `prompter` and `decoder`. No actix, no tokio.
//!
//! `wire` reads the link and ends the process at its EOF. `prompter` renders and encodes. `decoder`
//! loads the model and owns everything that computes.

mod batch;
mod decoder;
mod pipe;
mod probe;
mod prompter;
mod receiver;

pub use pipe::{log_panics_without_payload, over_pipe};

use super::{FromWorker, ModelSource, Question, Replay, Request, Settings, ToWorker};
use crate::models::{Embedded, codec::TextCodec};
use probe::ActivityProbe;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

/// Messages that prompter and decoder may have waiting: all requests a front has in hand and their questions, with room;
/// `wire` refuses what is more, because it must never wait while the link may end.
const INBOX: usize = 1024;

/// The other end of the link is gone: nobody wants what this worker computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnected;

/// Where a worker's messages go; a pipe stands behind it, or nothing does.
#[derive(Clone)]
pub struct Outbox(Arc<dyn Fn(FromWorker) -> Result<(), Disconnected> + Send + Sync>);

impl Outbox {
    pub fn new(send: impl Fn(FromWorker) -> Result<(), Disconnected> + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }

    pub fn send(&self, message: FromWorker) -> Result<(), Disconnected> {
        (self.0)(message)
    }
}

/// A request on its way to the decoder.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) request: Request,
    pub(crate) replay: Replay,
    /// Set by `wire`, also while the request is still at the prompter. Whoever holds the job looks before its next piece of work,
    /// and answers a cancelled one with its `End`.
    pub(crate) cancelled: Arc<AtomicBool>,
    pub(crate) arrived: Instant,
}

pub(crate) enum ToPrompter {
    /// Comes first, once, at the same time as the decoder's: both read the model's files.
    Load {
        source: ModelSource,
    },
    Generate(Job),
    Ask {
        id: u64,
        question: Question,
    },
}

pub(crate) enum ToDecoder {
    /// Comes first, once. Answered with `Loaded`.
    Load {
        source: ModelSource,
        settings: Settings,
    },
    /// Instead of `Load`: answered with `Loaded`, without the weights.
    Inspect {
        source: ModelSource,
        settings: Settings,
    },
    /// Comes once, from the prompter, whatever came of it.
    Codec(crate::models::Result<Arc<TextCodec>>),
    Generate(Box<Prepared>),
    /// Answered with `Pong` between two steps.
    Ping {
        id: u64,
    },
}

impl Job {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// A job with its prompt as tokens.
pub(crate) struct Prepared {
    pub(crate) job: Job,
    pub(crate) prompt: Vec<u32>,
}

/// A whole worker, on the calling thread and two more; returns when the inbox has ended and they have.
pub fn run(inbox: impl IntoIterator<Item = ToWorker>, outbox: Outbox, embedded: Option<Embedded>) {
    let (to_decoder, decoder_inbox) = mpsc::sync_channel(INBOX);
    let (to_prompter, prompter_inbox) = mpsc::sync_channel(INBOX);
    let probe = ActivityProbe::default();
    let decoder = {
        let (of_decoder, probe) = (outbox.clone(), probe.clone());
        spawn_stage("decoder", &outbox, move || decoder::run(decoder_inbox, of_decoder, probe, embedded))
    };
    let prompter = {
        let (to_decoder, of_prompter) = (to_decoder.clone(), outbox.clone());
        spawn_stage("prompter", &outbox, move || prompter::run(prompter_inbox, to_decoder, of_prompter, probe, embedded))
    };
    receiver::run(inbox, &outbox, to_prompter, to_decoder);
    for thread in [prompter, decoder].into_iter().flatten() {
        // A panic was told where it was caught.
        let _ = thread.join();
    }
}

/// A thread without which the worker can't go on: when it panics the front is told, and ends the worker.
fn spawn_stage(name: &'static str, outbox: &Outbox, body: impl FnOnce() + Send + 'static) -> Option<thread::JoinHandle<()>> {
    let last_words = outbox.clone();
    let guarded = move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            let _ = last_words.send(FromWorker::Broken { cause: format!("{name} panicked{}", panic_message(panic.as_ref())) });
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

/// What a panic said, if that was written before any prompt was read: a formatted message may quote one.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic.downcast_ref::<&'static str>().map(|words| format!(": {words}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_words(body: impl FnOnce() + Send + 'static) -> Option<FromWorker> {
        let (sender, words) = mpsc::sync_channel(1);
        let outbox = Outbox::new(move |message| sender.send(message).map_err(|_| Disconnected));
        spawn_stage("decoder", &outbox, body).unwrap().join().unwrap();
        words.try_recv().ok()
    }

    #[test]
    fn a_thread_that_panics_is_told_without_what_it_may_have_read() {
        let prompt = String::from("a secret");
        let broken = |cause: &str| Some(FromWorker::Broken { cause: cause.into() });
        assert_eq!(last_words(|| {}), None);
        assert_eq!(last_words(|| panic!("a cache of the wrong shape")), broken("decoder panicked: a cache of the wrong shape"));
        assert_eq!(last_words(move || panic!("no {prompt}")), broken("decoder panicked"));
    }
}
