//! A worker: the three threads that run one model. No actix, no tokio.
//!
//! `receiver` reads the link and ends the process at its EOF. `prompter` renders and tokenizes prompts. `decoder` loads the
//! model and owns everything that computes.

mod batch;
mod decoder;
mod pipe;
mod probe;
mod prompter;
mod receiver;

pub use pipe::{log_panics_without_payload, over_pipe};

use super::{FromWorker, ModelSource, Question, Replay, Request, Settings, ToWorker};
use crate::config::Limits;
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

/// Messages waiting for the prompter or the decoder: all requests in flight and as many more. `receiver` refuses further ones
/// instead of waiting, because a waiting thread would not see the end of the link.
const INBOX: usize = 2 * Limits::REQUESTS_IN_FLIGHT_MAX;

/// The other end of the link is closed, so the worker's results are not needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnected;

/// Sends a worker's messages to a pipe or a channel.
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
    /// Set by `receiver` at any stage. Each stage checks it before its next unit of work, and ends a cancelled job with an
    /// `End` message.
    pub(crate) cancelled: Arc<AtomicBool>,
    pub(crate) arrived: Instant,
}

pub(crate) enum ToPrompter {
    /// The first message, sent once. The decoder gets its `Load` at the same time, and both read the model's files.
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
    /// The first message, sent once. Answered with `Loaded`.
    Load {
        source: ModelSource,
        settings: Settings,
    },
    /// Sent instead of `Load`. Answered with `Loaded`, without loading the weights.
    Inspect {
        source: ModelSource,
        settings: Settings,
    },
    /// Sent once by the prompter, also when it failed to load.
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

/// A job with its tokenized prompt.
pub(crate) struct Prepared {
    pub(crate) job: Job,
    pub(crate) prompt: Vec<u32>,
}

/// Runs a worker on the calling thread and two more. Returns when the inbox and both threads have ended.
pub fn run(inbox: impl IntoIterator<Item = ToWorker>, outbox: Outbox, embedded: Option<Embedded>) {
    let (to_decoder, decoder_inbox) = mpsc::sync_channel(INBOX);
    let (to_prompter, prompter_inbox) = mpsc::sync_channel(INBOX);
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

/// Starts a thread that the worker can't run without. Its panic is reported to the front, which then ends the worker.
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
fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic.downcast_ref::<&'static str>().map(|message| format!(": {message}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
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
