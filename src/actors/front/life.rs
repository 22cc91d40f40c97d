//! A worker's life is one task: it owns the link and the requests in flight, and hands everything back when the link ends.
//!
//! What was in flight when a worker died is replayed here, in the next life: one request at a time, and nothing else is
//! sent meanwhile, until each is a token past where it stood. So a request that kills its worker again is known.

use super::{
    errand::{Ask, Cause, Complete, Errand, Flight, InFlight, Reply, Sign, Standing, WorkerEnded},
    link::{Launch, Link, Parting},
};
use crate::actors::{DecoderStatus, End, Error, FinishReason, FromWorker, Question, Step, ToWorker, Usage, WIRE, frame};
use crate::config::{Config, Model};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, HashMap},
    future::pending,
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// How often a decoder with work in hand is asked for a sign: several times within the silence that it is allowed.
const PING_EVERY: Duration = Duration::from_secs(5);

/// What every model shares.
pub(super) struct House {
    pub(super) config: Config,
    pub(super) launch: Launch,
}

/// What a life starts from.
pub(super) struct Birth {
    pub(super) life: u64,
    pub(super) model: Model,
    pub(super) house: Arc<House>,
    pub(super) in_flight: InFlight,
    /// The back-off: the worker starts when this has passed; what is cancelled meanwhile ends at once.
    pub(super) after: Duration,
}

pub(super) async fn life(birth: Birth, mut errands: mpsc::Receiver<Errand>, told: impl Fn(Sign)) -> WorkerEnded {
    let mut life = Life::new(birth, told);
    let fate = loop {
        let alarm = life.alarm();
        let next = tokio::select! {
            heard = receive(&mut life.link) => life.heard(heard),
            errand = errands.recv() => life.take(errand),
            Some(id) = life.leaving.next() => life.cancel(id),
            () = ring(alarm) => life.rung(),
        };
        if let ControlFlow::Break(fate) = next {
            break fate;
        }
    };
    let cause = life.part(fate).await;
    life.hand_back(cause, errands)
}

async fn receive(link: &mut Option<Link>) -> Result<Option<FromWorker>, frame::Error> {
    match link {
        Some(link) => link.receive().await,
        None => pending().await,
    }
}

async fn ring(alarm: Option<Instant>) {
    match alarm {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Why the loop ended.
enum Fate {
    /// The link did, and the worker's own end says why.
    Ended,
    Close(Cause),
    /// The worker can't be trusted to end by itself.
    Kill(String),
}

type Next = ControlFlow<Fate>;

struct Asked {
    question: Question,
    sent: bool,
    reply: Reply,
}

/// The one request that is being replayed.
struct Alone {
    id: u64,
    /// Tokens it had when its worker died.
    stood: usize,
}

struct Life<F> {
    birth: Birth,
    told: F,
    start: Instant,
    /// `None` during the back-off.
    link: Option<Link>,
    greeted: bool,
    ready: bool,
    asked: BTreeMap<u64, Asked>,
    pings: HashMap<u64, oneshot::Sender<DecoderStatus>>,
    pings_sent: u64,
    /// Resolves to the id of a request whose readers are gone, or that has ended.
    leaving: FuturesUnordered<BoxFuture<'static, u64>>,
    alone: Option<Alone>,
    /// The last sign of the decoder, or when it got something to do.
    heard_at: Instant,
    ping_at: Instant,
    idle_since: Instant,
}

impl<F: Fn(Sign)> Life<F> {
    fn new(birth: Birth, told: F) -> Self {
        let now = Instant::now();
        let life = Self {
            start: now + birth.after,
            birth,
            told,
            link: None,
            greeted: false,
            ready: false,
            asked: BTreeMap::new(),
            pings: HashMap::new(),
            pings_sent: 0,
            leaving: FuturesUnordered::new(),
            alone: None,
            heard_at: now,
            ping_at: now,
            idle_since: now,
        };
        life.birth.in_flight.iter().for_each(|(&id, flight)| life.watch(id, flight));
        life
    }

    fn watch(&self, id: u64, flight: &Flight) {
        let abandoned = flight.recorder.abandoned();
        self.leaving.push(Box::pin(async move {
            abandoned.await;
            id
        }));
    }

    fn has_work(&self) -> bool {
        !self.ready || !self.birth.in_flight.is_empty() || !self.asked.is_empty() || !self.pings.is_empty()
    }

    fn silence_ends(&self) -> Instant {
        self.heard_at + self.birth.house.config.limits.decoder_silence
    }

    /// When something is due without anybody saying a word; an idle life without a keep-alive has no timer at all.
    fn alarm(&self) -> Option<Instant> {
        if self.link.is_none() {
            Some(self.start)
        } else if !self.ready {
            Some(self.silence_ends())
        } else if self.has_work() {
            Some(self.silence_ends().min(self.ping_at))
        } else {
            self.birth.house.config.keep_alive.map(|keep_alive| self.idle_since + keep_alive)
        }
    }

    fn rung(&mut self) -> Next {
        let now = Instant::now();
        if self.link.is_none() {
            return self.launch(now);
        }
        if !self.has_work() {
            return Next::Break(Fate::Close(Cause::Idle));
        }
        if now >= self.silence_ends() {
            let silence = self.birth.house.config.limits.decoder_silence.as_secs();
            return Next::Break(Fate::Kill(format!("its decoder gave no sign for {silence} s")));
        }
        if self.ready {
            self.ping();
        }
        Next::Continue(())
    }

    fn launch(&mut self, now: Instant) -> Next {
        match (self.birth.house.launch)(&self.birth.model.name) {
            Ok(link) => {
                (self.told)(Sign::Started { pid: link.pid() });
                self.link = Some(link);
                self.heard_at = now;
                Next::Continue(())
            }
            Err(error) => Next::Break(Fate::Close(Cause::Died(format!("could not be started: {error}")))),
        }
    }

    fn ping(&mut self) -> u64 {
        self.pings_sent += 1;
        self.ping_at = Instant::now() + PING_EVERY;
        let id = self.pings_sent;
        // A ping always fits a frame.
        let _ = self.post(ToWorker::Ping { id });
        id
    }

    fn post(&mut self, message: ToWorker) -> Result<(), frame::Error> {
        self.link.as_mut().expect("nothing is posted before the worker said that it is ready, or hello").post(message)
    }

    fn take(&mut self, errand: Option<Errand>) -> Next {
        let Some(errand) = errand else { return Next::Break(Fate::Close(Cause::Dismissed)) };
        if self.ready && !self.has_work() {
            self.heard_at = Instant::now();
            self.ping_at = self.heard_at + PING_EVERY;
        }
        match errand {
            Errand::Complete(Complete { id, request, recorder }, in_hand) => {
                let flight = Flight { request, recorder, standing: Standing::Held, in_hand };
                self.watch(id, &flight);
                self.birth.in_flight.insert(id, flight);
            }
            Errand::Ask(Ask { id, question, reply }) => {
                self.asked.insert(id, Asked { question, sent: false, reply });
            }
            Errand::Ping(reply) if self.ready => {
                let id = self.ping();
                self.pings.insert(id, reply);
            }
            Errand::Ping(_) => {}
        }
        self.send();
        Next::Continue(())
    }

    /// Sends what may be sent now.
    fn send(&mut self) {
        if !self.ready || self.alone.is_some() {
            return;
        }
        let suspect = self.birth.in_flight.iter().find(|(_, flight)| flight.standing == Standing::Suspect);
        if let Some((&id, flight)) = suspect {
            self.alone = Some(Alone { id, stood: flight.recorder.tokens() });
            return self.generate(id);
        }
        let held = self.birth.in_flight.iter().filter(|(_, flight)| flight.standing == Standing::Held);
        for id in held.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.generate(id);
        }
        let unsent = self.asked.iter_mut().filter(|(_, asked)| !asked.sent);
        let unsent = unsent.map(|(&id, asked)| {
            asked.sent = true;
            (id, asked.question.clone())
        });
        for (id, question) in unsent.collect::<Vec<_>>() {
            if let Err(error) = self.post(ToWorker::Ask { id, question })
                && let Some(asked) = self.asked.remove(&id)
            {
                asked.reply.answer(Err(Error::Internal(error.to_string())));
            }
        }
    }

    fn generate(&mut self, id: u64) {
        let Some(flight) = self.birth.in_flight.get_mut(&id) else { return };
        flight.standing = Standing::Sent;
        let generate = ToWorker::Generate { id, request: flight.request.clone(), replay: flight.recorder.replay() };
        if let Err(error) = self.post(generate) {
            self.end(id, End::Failed(Error::Internal(error.to_string())));
        }
    }

    /// The readers of a request are gone. What no worker has is ended here.
    fn cancel(&mut self, id: u64) -> Next {
        match self.birth.in_flight.get(&id).map(|flight| flight.standing) {
            Some(Standing::Sent) => {
                // A cancel always fits a frame.
                let _ = self.post(ToWorker::Cancel { id });
            }
            Some(Standing::Held | Standing::Suspect) => {
                if let Some(flight) = self.birth.in_flight.remove(&id) {
                    end_cancelled(flight);
                    self.idle_since = Instant::now();
                }
            }
            None => {}
        }
        Next::Continue(())
    }

    fn end(&mut self, id: u64, end: End) {
        // An end of a request that has one already is no news.
        let Some(flight) = self.birth.in_flight.remove(&id) else { return };
        flight.recorder.end(end);
        self.idle_since = Instant::now();
        self.alone.take_if(|alone| alone.id == id);
        self.send();
    }

    fn heard(&mut self, heard: Result<Option<FromWorker>, frame::Error>) -> Next {
        let message = match heard {
            Ok(Some(message)) => message,
            Ok(None) => return Next::Break(Fate::Ended),
            Err(frame::Error::Io(_)) => return Next::Break(Fate::Ended),
            Err(error) => return Next::Break(Fate::Kill(format!("it sent {error}"))),
        };
        if !self.greeted && !matches!(message, FromWorker::Hello { .. } | FromWorker::Broken { .. }) {
            return Next::Break(Fate::Kill("it spoke before its hello".into()));
        }
        match message {
            FromWorker::Hello { wire: WIRE } => {
                self.greeted = true;
                self.heard_at = Instant::now();
                let load = ToWorker::Load { source: self.birth.model.source.clone(), settings: self.birth.house.config.settings.clone() };
                if let Err(error) = self.post(load) {
                    return Next::Break(Fate::Close(Cause::Refused(Error::Internal(error.to_string()))));
                }
            }
            FromWorker::Hello { wire } => return Next::Break(Fate::Close(Cause::Refused(other_version(wire)))),
            FromWorker::Loading { done, total } => {
                self.heard_at = Instant::now();
                (self.told)(Sign::Loading { done, total });
            }
            FromWorker::Loaded(Ok(card)) => {
                self.ready = true;
                self.heard_at = Instant::now();
                self.ping_at = self.heard_at + PING_EVERY;
                self.idle_since = self.heard_at;
                (self.told)(Sign::Ready(card));
                self.send();
            }
            FromWorker::Loaded(Err(error)) => return Next::Break(Fate::Close(Cause::Refused(error))),
            FromWorker::Step { id, step } => return self.step(id, step),
            FromWorker::End { id, end } => {
                self.heard_at = Instant::now();
                self.end(id, end);
            }
            FromWorker::Answer { id, answer } => {
                if let Some(asked) = self.asked.remove(&id) {
                    asked.reply.answer(answer);
                    self.idle_since = Instant::now();
                }
            }
            FromWorker::Pong { id, status } => {
                self.heard_at = Instant::now();
                if let Some(reply) = self.pings.remove(&id) {
                    // Who asked may have waited long enough.
                    let _ = reply.send(status);
                }
            }
            FromWorker::Broken { cause } => return Next::Break(Fate::Close(Cause::Died(cause))),
        }
        Next::Continue(())
    }

    fn step(&mut self, id: u64, step: Step) -> Next {
        self.heard_at = Instant::now();
        // Nobody waits for what comes after an end.
        let Some(flight) = self.birth.in_flight.get_mut(&id) else { return Next::Continue(()) };
        let tokens = flight.recorder.tokens() + step.tokens.len();
        if tokens > flight.request.tokens_max as usize {
            return Next::Break(Fate::Kill(format!("it answered {tokens} tokens where {} were asked", flight.request.tokens_max)));
        }
        flight.recorder.record(step);
        if self.alone.take_if(|alone| alone.id == id && alone.stood < tokens).is_some() {
            self.send();
        }
        Next::Continue(())
    }

    async fn part(&mut self, fate: Fate) -> Cause {
        let (parting, cause) = match fate {
            Fate::Ended => (Parting::Close, None),
            Fate::Close(cause) => (Parting::Close, Some(cause)),
            Fate::Kill(cause) => (Parting::Kill, Some(Cause::Died(cause))),
        };
        let Some(link) = self.link.take() else { return cause.unwrap_or(Cause::Dismissed) };
        let words = link.end(parting).await;
        cause.unwrap_or(Cause::Died(words))
    }

    /// Everything goes back but what this death decides: the request that was alone is lost, and so are the questions that were sent.
    fn hand_back(mut self, cause: Cause, mut errands: mpsc::Receiver<Errand>) -> WorkerEnded {
        let mut unsent = Vec::new();
        for (id, Asked { question, sent, reply }) in self.asked {
            match &cause {
                Cause::Died(cause) if sent => reply.answer(Err(lost(&self.birth.model.name, cause))),
                Cause::Died(_) | Cause::Refused(_) | Cause::Idle | Cause::Dismissed => {
                    unsent.push(Errand::Ask(Ask { id, question, reply }));
                }
            }
        }
        errands.close();
        while let Ok(errand) = errands.try_recv() {
            unsent.push(errand);
        }
        let mut in_flight = InFlight::new();
        for (id, mut flight) in self.birth.in_flight {
            let alone = self.alone.take_if(|alone| alone.id == id).is_some();
            match &cause {
                Cause::Died(_) if flight.recorder.is_abandoned() => end_cancelled(flight),
                Cause::Died(cause) if alone => flight.recorder.fail(lost(&self.birth.model.name, cause)),
                Cause::Died(_) | Cause::Refused(_) | Cause::Idle | Cause::Dismissed => {
                    if flight.standing == Standing::Sent {
                        flight.standing = Standing::Suspect;
                    }
                    in_flight.insert(id, flight);
                }
            }
        }
        WorkerEnded { life: self.birth.life, in_flight, unsent, cause }
    }
}

fn end_cancelled(flight: Flight) {
    let usage = Usage { completion_tokens: flight.recorder.tokens() as u32, ..Usage::default() };
    flight.recorder.end(End::Done { reason: FinishReason::Cancelled, usage, applied: flight.request.sampling });
}

fn lost(model: &str, cause: &str) -> Error {
    Error::WorkerLost { model: model.to_owned(), cause: cause.to_owned() }
}

pub(super) fn other_version(wire: u32) -> Error {
    Error::Internal(format!("the worker speaks version {wire} of the wire, the front {WIRE}; they are of different builds"))
}
