//! Reads the link and routes each message to its stage. It never waits for a stage, so it always sees the end of the link.

use super::messages::{INBOX_CAPACITY, Job, Outbox, ToDecoder, ToPrompter};
use crate::actors::{End, Error, FromWorker, Question, ToWorker, WIRE_VERSION};
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
    // A closed link shows as the end of the inbox.
    let _ = outbox.send(FromWorker::Hello { version: WIRE_VERSION });
    for message in inbox {
        router.route(message);
    }
    // Nothing reads the remaining results.
    router.cancels.values().filter_map(Weak::upgrade).for_each(|cancelled| cancelled.store(true, Ordering::Relaxed));
}

struct Router<'a> {
    outbox: &'a Outbox,
    to_prompter: SyncSender<ToPrompter>,
    to_decoder: SyncSender<ToDecoder>,
    /// Cancel flags of this worker's requests by id. A flag is dropped with its job.
    cancels: HashMap<u64, Weak<AtomicBool>>,
}

impl Router<'_> {
    fn route(&mut self, message: ToWorker) {
        match message {
            ToWorker::Load { source, settings } => {
                self.decode(ToDecoder::Load { source: source.clone(), settings });
                // Can't be full: it is the first message.
                let _ = self.to_prompter.try_send(ToPrompter::Load { source });
            }
            ToWorker::Inspect { source, settings } => self.decode(ToDecoder::Inspect { source, settings }),
            ToWorker::Generate { id, request, replay } => {
                let cancelled = Arc::new(AtomicBool::new(false));
                self.cancels.retain(|_, cancelled| cancelled.strong_count() > 0);
                self.cancels.insert(id, Arc::downgrade(&cancelled));
                let job = Job { id, request, replay, cancelled, arrived: Instant::now() };
                if let Err(error) = delivery(self.to_prompter.try_send(ToPrompter::Generate(job))) {
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
        if let Err(error) = delivery(self.to_prompter.try_send(ToPrompter::Ask { id, question })) {
            let _ = self.outbox.send(FromWorker::Answer { id, answer: Err(error) });
        }
    }

    fn decode(&self, message: ToDecoder) {
        // A decoder with a full inbox is stalled, and the front ends the worker after the silence limit.
        let _ = self.to_decoder.try_send(message);
    }
}

fn delivery<T>(sent: Result<(), TrySendError<T>>) -> Result<(), Error> {
    match sent {
        Ok(()) => Ok(()),
        Err(TrySendError::Full(_)) => Err(Error::Overloaded { limit: INBOX_CAPACITY }),
        Err(TrySendError::Disconnected(_)) => Err(Error::StagePanicked { stage: "prompter".into(), cause: "its thread has ended".into() }),
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

    /// Routes the messages with `capacity` places in the inbox of each stage.
    fn route(messages: Vec<ToWorker>, capacity: usize) -> (Vec<FromWorker>, Receiver<ToPrompter>, Receiver<ToDecoder>) {
        let (sender, sent) = sync_channel(64);
        let (to_prompter, prompter) = sync_channel(capacity);
        let (to_decoder, decoder) = sync_channel(capacity);
        let outbox = Outbox::new(move |message| sender.send(message).map_err(|_| Disconnected));
        run(messages, &outbox, to_prompter, to_decoder);
        drop(outbox);
        (sent.iter().collect(), prompter, decoder)
    }

    #[test]
    fn hello_is_sent_first_and_every_message_goes_to_its_stage() {
        let load = ToWorker::Load { source: ModelSource::Embedded, settings: Settings::default() };
        let ask = ToWorker::Ask { id: 3, question: Question::Tokenize("a".into()) };
        let (sent, prompter, decoder) = route(vec![load, generate(2), ask, ToWorker::Ping { id: 4 }], 8);
        assert_eq!(sent, [FromWorker::Hello { version: WIRE_VERSION }]);
        let prompter: Vec<_> = prompter.iter().collect();
        assert!(matches!(&prompter[..], [ToPrompter::Load { .. }, ToPrompter::Generate(Job { id: 2, .. }), ToPrompter::Ask { id: 3, .. }]));
        let decoder: Vec<_> = decoder.iter().collect();
        assert!(matches!(&decoder[..], [ToDecoder::Load { .. }, ToDecoder::Ping { id: 4 }]));
    }

    #[test]
    fn a_cancel_reaches_a_request_that_waits_for_the_prompter() {
        let (sender, sent) = sync_channel(8);
        let (to_prompter, prompter) = sync_channel(8);
        let (to_decoder, _decoder) = sync_channel(8);
        let outbox = Outbox::new(move |message| sender.send(message).map_err(|_| Disconnected));
        let mut router = Router { outbox: &outbox, to_prompter, to_decoder, cancels: HashMap::new() };
        for message in [generate(1), generate(2), ToWorker::Cancel { id: 1 }, ToWorker::Cancel { id: 9 }] {
            router.route(message);
        }
        let flags = prompter.try_iter().map(|message| match message {
            ToPrompter::Generate(job) => job.is_cancelled(),
            ToPrompter::Load { .. } | ToPrompter::Ask { .. } => unreachable!("only requests were sent"),
        });
        assert_eq!(flags.collect::<Vec<_>>(), [true, false]);
        // Both jobs are dropped by now, so only the flag of the next one is left.
        router.route(generate(3));
        assert_eq!(router.cancels.keys().collect::<Vec<_>>(), [&3]);
        assert!(sent.try_iter().next().is_none());
    }

    #[test]
    fn the_end_of_the_link_cancels_everything() {
        let (_, prompter, _) = route(vec![generate(1)], 8);
        let Ok(ToPrompter::Generate(job)) = prompter.recv() else { panic!("a request was sent") };
        assert!(job.is_cancelled());
    }

    #[test]
    fn messages_to_a_full_prompter_are_refused_without_waiting() {
        let ask = ToWorker::Ask { id: 3, question: Question::Detokenize(Vec::new()) };
        let (sent, _prompter, _decoder) = route(vec![generate(1), generate(2), ask], 1);
        let overloaded = || Error::Overloaded { limit: INBOX_CAPACITY };
        let expected = [
            FromWorker::Hello { version: WIRE_VERSION },
            FromWorker::End { id: 2, end: End::Failed(overloaded()) },
            FromWorker::Answer { id: 3, answer: Err(overloaded()) },
        ];
        assert_eq!(sent, expected);
    }
}
