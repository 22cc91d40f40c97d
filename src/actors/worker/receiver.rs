//! Reads the link and passes each message on. It never waits for another stage, so it always sees the link's end.

use super::{FromWorker, Job, Outbox, Question, ToDecoder, ToPrompter, ToWorker};
use crate::actors::{End, Error, WIRE_VERSION};
use crate::failpoints::{self, Point};
use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::Instant,
};

pub(super) fn run(
    inbox: impl IntoIterator<Item = ToWorker>,
    outbox: &Outbox,
    to_prompter: SyncSender<ToPrompter>,
    to_decoder: SyncSender<ToDecoder>,
) {
    let mut router = Router { outbox, to_prompter, to_decoder, cancels: HashMap::new() };
    failpoints::at(Point::WorkerHello, None);
    // Who is gone is not told anything; that the link has ended is seen where it is read.
    let _ = outbox.send(FromWorker::Hello { version: WIRE_VERSION });
    for message in inbox {
        router.route(message);
    }
    // Nobody reads what is still computed.
    router.cancels.values().filter_map(Weak::upgrade).for_each(|cancelled| cancelled.store(true, Ordering::Relaxed));
}

struct Router<'a> {
    outbox: &'a Outbox,
    to_prompter: SyncSender<ToPrompter>,
    to_decoder: SyncSender<ToDecoder>,
    /// Of requests that are somewhere in this worker; a flag dies with its job.
    cancels: HashMap<u64, Weak<AtomicBool>>,
}

impl Router<'_> {
    fn route(&mut self, message: ToWorker) {
        match message {
            ToWorker::Load { source, settings } => {
                self.decode(ToDecoder::Load { source: source.clone(), settings });
                // The first message of an empty inbox.
                let _ = self.to_prompter.try_send(ToPrompter::Load { source });
            }
            ToWorker::Inspect { source, settings } => self.decode(ToDecoder::Inspect { source, settings }),
            ToWorker::Generate { id, request, replay } => {
                let cancelled = Arc::new(AtomicBool::new(false));
                self.cancels.retain(|_, cancelled| cancelled.strong_count() > 0);
                self.cancels.insert(id, Arc::downgrade(&cancelled));
                let job = Job { id, request, replay, cancelled, arrived: Instant::now() };
                if let Err(error) = refused(self.to_prompter.try_send(ToPrompter::Generate(job))) {
                    let _ = self.outbox.send(FromWorker::End { id, end: End::Failed(error) });
                }
            }
            ToWorker::Cancel { id } => {
                if let Some(cancelled) = self.cancels.get(&id).and_then(Weak::upgrade) {
                    cancelled.store(true, Ordering::Relaxed);
                }
            }
            ToWorker::Ask { id, question } => self.ask(id, question),
            ToWorker::Ping { id } => self.decode(ToDecoder::Ping { id }),
        }
    }

    fn ask(&self, id: u64, question: Question) {
        if let Err(error) = refused(self.to_prompter.try_send(ToPrompter::Ask { id, question })) {
            let _ = self.outbox.send(FromWorker::Answer { id, answer: Err(error) });
        }
    }

    fn decode(&self, message: ToDecoder) {
        // A decoder that takes nothing gives no sign either, and for that the front has a limit.
        let _ = self.to_decoder.try_send(message);
    }
}

fn refused<T>(sent: Result<(), TrySendError<T>>) -> Result<(), Error> {
    match sent {
        Ok(()) => Ok(()),
        Err(TrySendError::Full(_)) => Err(Error::Overloaded { limit: super::INBOX }),
        Err(TrySendError::Disconnected(_)) => Err(Error::StagePanicked { stage: "prompter".into(), cause: "it is gone".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::{ModelSource, Prompt, Replay, Request, Sampling, Settings, worker::Disconnected};
    use std::sync::mpsc::{Receiver, sync_channel};

    fn generate(id: u64) -> ToWorker {
        let prompt = Prompt::Text(String::new());
        let request = Request { model: "m".into(), prompt, sampling: Sampling::default(), stop: Vec::new(), tokens_max: 1, logprobs: None };
        ToWorker::Generate { id, request, replay: Replay::default() }
    }

    /// Runs a wire to its inbox's end, with room for `room` messages at each of the others.
    fn passed(messages: Vec<ToWorker>, room: usize) -> (Vec<FromWorker>, Receiver<ToPrompter>, Receiver<ToDecoder>) {
        let (said, words) = sync_channel(64);
        let (to_prompter, prompter) = sync_channel(room);
        let (to_decoder, decoder) = sync_channel(room);
        let outbox = Outbox::new(move |message| said.send(message).map_err(|_| Disconnected));
        run(messages, &outbox, to_prompter, to_decoder);
        drop(outbox);
        (words.iter().collect(), prompter, decoder)
    }

    #[test]
    fn hello_comes_first_and_every_message_goes_to_its_stage() {
        let load = ToWorker::Load { source: ModelSource::Embedded, settings: Settings::default() };
        let ask = ToWorker::Ask { id: 3, question: Question::Tokenize("a".into()) };
        let (words, prompter, decoder) = passed(vec![load, generate(2), ask, ToWorker::Ping { id: 4 }], 8);
        assert_eq!(words, [FromWorker::Hello { version: WIRE_VERSION }]);
        let prompter: Vec<_> = prompter.iter().collect();
        assert!(matches!(&prompter[..], [ToPrompter::Load { .. }, ToPrompter::Generate(Job { id: 2, .. }), ToPrompter::Ask { id: 3, .. }]));
        let decoder: Vec<_> = decoder.iter().collect();
        assert!(matches!(&decoder[..], [ToDecoder::Load { .. }, ToDecoder::Ping { id: 4 }]));
    }

    #[test]
    fn a_cancel_finds_its_request_while_it_waits_at_the_prompter() {
        let (said, words) = sync_channel(8);
        let (to_prompter, prompter) = sync_channel(8);
        let (to_decoder, _decoder) = sync_channel(8);
        let outbox = Outbox::new(move |message| said.send(message).map_err(|_| Disconnected));
        let mut router = Router { outbox: &outbox, to_prompter, to_decoder, cancels: HashMap::new() };
        for message in [generate(1), generate(2), ToWorker::Cancel { id: 1 }, ToWorker::Cancel { id: 9 }] {
            router.route(message);
        }
        let flags = prompter.try_iter().map(|message| match message {
            ToPrompter::Generate(job) => job.is_cancelled(),
            ToPrompter::Load { .. } | ToPrompter::Ask { .. } => unreachable!("only requests were sent"),
        });
        assert_eq!(flags.collect::<Vec<_>>(), [true, false]);
        // Both jobs are gone by now, so the next one finds no flags but its own.
        router.route(generate(3));
        assert_eq!(router.cancels.keys().collect::<Vec<_>>(), [&3]);
        assert!(words.try_iter().next().is_none());
    }

    #[test]
    fn the_end_of_the_link_cancels_everything() {
        let (_, prompter, _) = passed(vec![generate(1)], 8);
        let Ok(ToPrompter::Generate(job)) = prompter.recv() else { panic!("a request was sent") };
        assert!(job.is_cancelled());
    }

    #[test]
    fn a_full_prompter_is_answered_for_and_never_waited_for() {
        let ask = ToWorker::Ask { id: 3, question: Question::Detokenize(Vec::new()) };
        let (words, _prompter, _decoder) = passed(vec![generate(1), generate(2), ask], 1);
        let overloaded = || Error::Overloaded { limit: super::super::INBOX };
        let expected = [
            FromWorker::Hello { version: WIRE_VERSION },
            FromWorker::End { id: 2, end: End::Failed(overloaded()) },
            FromWorker::Answer { id: 3, answer: Err(overloaded()) },
        ];
        assert_eq!(words, expected);
    }
}
