//! What a life has in hand: its requests and questions, which of them may be sent now, and what a death makes of them.
//!
//! What was in a worker when it died is replayed in the next life: one request at a time, and nothing else is sent meanwhile,
//! until each is a token past where it stood. Those that are past it run on, so whose turn it is when a worker dies again is
//! only accused: it goes first in the next life, really alone, and is lost if that ends the same way.

use super::{
    errand::{Ask, Cause, Complete, Errand, Flight, InFlight, InHand, Reply, Standing},
    link::Link,
};
use crate::actors::{Answer, End, Error, FinishReason, Question, Result, Step, ToWorker, Usage};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::collections::BTreeMap;

pub(super) struct Hand {
    model: String,
    flights: InFlight,
    asked: BTreeMap<u64, Asked>,
    turn: Option<Turn>,
    /// Resolves to the id of a request or question whose readers are gone, or that has ended.
    leaving: FuturesUnordered<BoxFuture<'static, u64>>,
}

struct Asked {
    question: Question,
    sent: bool,
    reply: Reply,
}

/// The request whose turn it is to be replayed.
struct Turn {
    id: u64,
    /// Tokens it had when its worker died.
    stood: usize,
}

impl Hand {
    pub(super) fn new(model: String, flights: InFlight) -> Self {
        let hand = Self { model, flights, asked: BTreeMap::new(), turn: None, leaving: FuturesUnordered::new() };
        hand.flights.iter().for_each(|(&id, flight)| hand.watch(id, flight.recorder.abandoned()));
        hand
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty() && self.asked.is_empty()
    }

    pub(super) fn complete(&mut self, Complete { id, request, recorder }: Complete, in_hand: InHand) {
        let flight = Flight { request, recorder, standing: Standing::Held, _in_hand: in_hand };
        self.watch(id, flight.recorder.abandoned());
        self.flights.insert(id, flight);
    }

    pub(super) fn ask(&mut self, Ask { id, question, reply }: Ask) {
        self.watch(id, reply.asker.clone().cancelled_owned());
        self.asked.insert(id, Asked { question, sent: false, reply });
    }

    /// The next of them; `None` while there are none.
    pub(super) async fn left(&mut self) -> Option<u64> {
        self.leaving.next().await
    }

    /// Sends a ready worker what it may have now.
    pub(super) fn send(&mut self, link: &mut Link) {
        if self.turn.is_some() {
            return;
        }
        let first = |standing| self.flights.iter().find(move |(_, flight)| flight.standing == standing);
        if let Some((&id, flight)) = first(Standing::Accused).or_else(|| first(Standing::Suspect)) {
            self.turn = Some(Turn { id, stood: flight.recorder.tokens() });
            return self.generate(id, link);
        }
        let held = self.flights.iter().filter(|(_, flight)| flight.standing == Standing::Held);
        for id in held.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.generate(id, link);
        }
        let unsent = self.asked.iter_mut().filter(|(_, asked)| !asked.sent);
        let unsent = unsent.map(|(&id, asked)| {
            asked.sent = true;
            (id, asked.question.clone())
        });
        for (id, question) in unsent.collect::<Vec<_>>() {
            if let Err(error) = link.post(ToWorker::Ask { id, question }) {
                self.answer(id, Err(Error::Internal(error.to_string())));
            }
        }
    }

    pub(super) fn answer(&mut self, id: u64, answer: Result<Answer>) {
        if let Some(asked) = self.asked.remove(&id) {
            asked.reply.answer(answer);
        }
    }

    /// The error says what is wrong with a worker that answers like this.
    pub(super) fn record(&mut self, id: u64, step: Step, link: &mut Link) -> std::result::Result<(), String> {
        // Nobody waits for what comes after an end.
        let Some(flight) = self.flights.get_mut(&id) else { return Ok(()) };
        let (tokens, asked) = (flight.recorder.tokens() + step.tokens.len(), flight.request.tokens_max);
        if tokens > asked as usize {
            return Err(format!("it answered {tokens} tokens where {asked} were asked"));
        }
        flight.recorder.record(step);
        if self.turn.take_if(|turn| turn.id == id && turn.stood < tokens).is_some() {
            self.send(link);
        }
        Ok(())
    }

    pub(super) fn end(&mut self, id: u64, end: End, link: &mut Link) {
        // An end of a request that has one already is no news.
        let Some(flight) = self.flights.remove(&id) else { return };
        flight.recorder.end(end);
        if self.turn.take_if(|turn| turn.id == id).is_some() {
            self.send(link);
        }
    }

    /// A request or question took its worker's time and will not get another's.
    pub(super) fn lose(&mut self, id: u64, cause: &str) {
        let error = lost(&self.model, cause);
        match self.flights.remove(&id) {
            Some(flight) => flight.recorder.fail(error),
            None => self.answer(id, Err(error)),
        }
    }

    /// The requests that have text already, which no other model can go on with.
    pub(super) fn lose_begun(&mut self, cause: &str) {
        let begun = self.flights.iter().filter(|(_, flight)| flight.recorder.tokens() > 0);
        begun.map(|(&id, _)| id).collect::<Vec<_>>().into_iter().for_each(|id| self.lose(id, cause));
    }

    /// The readers of a request or question are gone. What no worker has is ended here; a question's answer is nobody's.
    pub(super) fn cancel(&mut self, id: u64, link: Option<&mut Link>) {
        match (self.flights.get(&id).map(|flight| flight.standing), link) {
            (Some(Standing::Sent), Some(link)) => {
                // A cancel always fits a frame.
                let _ = link.post(ToWorker::Cancel { id });
            }
            (Some(Standing::Sent | Standing::Held | Standing::Suspect | Standing::Accused), _) => {
                self.flights.remove(&id).into_iter().for_each(end_cancelled);
            }
            (None, _) => drop(self.asked.remove(&id)),
        }
    }

    /// Everything goes back but what a death decides: a request that was alone is lost, and so are the questions that were sent.
    pub(super) fn hand_back(mut self, cause: &Cause) -> (InFlight, Vec<Errand>) {
        let mut flights = InFlight::new();
        let sent = self.flights.values().filter(|flight| flight.standing == Standing::Sent).count();
        for (id, mut flight) in self.flights {
            let in_turn = self.turn.take_if(|turn| turn.id == id).is_some();
            match cause {
                Cause::Died(_) if flight.recorder.is_abandoned() => end_cancelled(flight),
                Cause::Died(cause) if in_turn && sent == 1 => flight.recorder.fail(lost(&self.model, cause)),
                Cause::Died(_) | Cause::Refused(_) | Cause::Idle | Cause::Dismissed => {
                    flight.standing = match flight.standing {
                        Standing::Sent if in_turn => Standing::Accused,
                        Standing::Sent => Standing::Suspect,
                        standing @ (Standing::Held | Standing::Suspect | Standing::Accused) => standing,
                    };
                    flights.insert(id, flight);
                }
            }
        }
        let mut unsent = Vec::new();
        for (id, Asked { question, sent, reply }) in self.asked {
            match cause {
                Cause::Died(cause) if sent => reply.answer(Err(lost(&self.model, cause))),
                Cause::Died(_) | Cause::Refused(_) | Cause::Idle | Cause::Dismissed => {
                    unsent.push(Errand::Ask(Ask { id, question, reply }))
                }
            }
        }
        (flights, unsent)
    }

    fn watch(&self, id: u64, left: impl Future<Output = ()> + Send + 'static) {
        self.leaving.push(Box::pin(async move {
            left.await;
            id
        }));
    }

    fn generate(&mut self, id: u64, link: &mut Link) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        flight.standing = Standing::Sent;
        let generate = ToWorker::Generate { id, request: flight.request.clone(), replay: flight.recorder.replay() };
        if let Err(error) = link.post(generate) {
            self.end(id, End::Failed(Error::Internal(error.to_string())), link);
        }
    }
}

fn end_cancelled(flight: Flight) {
    let usage = Usage { completion_tokens: flight.recorder.tokens() as u32, ..Usage::default() };
    flight.recorder.end(End::Done { reason: FinishReason::Cancelled, usage, applied: flight.request.sampling });
}

fn lost(model: &str, cause: &str) -> Error {
    Error::WorkerLost { model: model.to_owned(), cause: cause.to_owned() }
}
