//! A worker's life is one task: it owns the link and what is in hand, and gives everything back when the link ends.

use super::{
    errand::{Cause, Errand, InFlight, Sign, WorkerEnded},
    hand::Hand,
    house::House,
    link::{Link, Parting},
    restarts::{Restarts, Verdict},
};
use crate::actors::{DecoderStatus, End, Error, FromWorker, ModelInfo, Prompting, ToWorker, WIRE, frame};
use crate::config::Model;
use std::{collections::HashMap, future::pending, ops::ControlFlow, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// How often a decoder with work in hand is asked for a sign within the silence that it is allowed.
const PINGS_IN_SILENCE: u32 = 6;

/// An alarm that is this late says that this process stood still itself, and nothing of the worker.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// What a life starts from.
pub(super) struct Birth {
    pub(super) life: u64,
    pub(super) model: Model,
    pub(super) house: Arc<House>,
    /// The back-off: the worker starts when this has passed; what is cancelled meanwhile ends at once.
    pub(super) after: Duration,
    /// What the lives before said the model is.
    pub(super) model_info: Option<ModelInfo>,
}

pub(super) async fn life(birth: Birth, replay: InFlight, mut errands: mpsc::Receiver<Errand>, told: impl Fn(Sign)) -> WorkerEnded {
    let mut life = Life::new(birth, replay, told);
    // A timer has a resolution of a millisecond, which a first token need not wait for.
    let mut next = if life.birth.after.is_zero() { life.launch() } else { Next::Continue(()) };
    let fate = loop {
        if let Next::Break(fate) = next {
            break fate;
        }
        let alarm = life.alarm();
        next = tokio::select! {
            heard = receive(&mut life.link) => life.heard(heard),
            errand = errands.recv() => life.take(errand),
            Some(id) = life.hand.left() => life.cancel(id),
            due = ring(alarm) => life.rung(due),
        };
    };
    let cause = part(life.link, fate).await;
    let (in_flight, mut unsent) = life.hand.hand_back(&cause);
    errands.close();
    while let Ok(errand) = errands.try_recv() {
        // A question to a worker that is gone must not begin another.
        if !matches!(errand, Errand::Ping(_)) {
            unsent.push(errand);
        }
    }
    WorkerEnded { life: life.birth.life, in_flight, unsent, cause }
}

async fn receive(link: &mut Option<Link>) -> Result<Option<FromWorker>, frame::Error> {
    match link {
        Some(link) => link.receive().await,
        None => pending().await,
    }
}

/// Resolves at the alarm, with when it was due.
async fn ring(alarm: Option<Instant>) -> Instant {
    match alarm {
        Some(at) => {
            sleep_until(at).await;
            at
        }
        None => pending().await,
    }
}

async fn part(link: Option<Link>, fate: Fate) -> Cause {
    let (parting, cause) = match fate {
        Fate::Ended => (Parting::Close, None),
        Fate::Close(cause @ (Cause::Idle | Cause::Dismissed)) => (Parting::Done, Some(cause)),
        Fate::Close(cause) => (Parting::Close, Some(cause)),
        Fate::Kill(cause) => (Parting::Kill, Some(Cause::Died(cause))),
    };
    let words = match link {
        Some(link) => link.end(parting).await,
        None => String::new(),
    };
    cause.unwrap_or(Cause::Died(words))
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

struct Life<F> {
    birth: Birth,
    told: F,
    start: Instant,
    /// `None` during the back-off.
    link: Option<Link>,
    greeted: bool,
    ready: bool,
    hand: Hand,
    /// Panics of this worker's stages.
    panics: Restarts,
    pings: HashMap<u64, oneshot::Sender<DecoderStatus>>,
    pings_sent: u64,
    /// The last sign of the decoder, or when it got something to do.
    heard_at: Instant,
    ping_at: Instant,
    idle_since: Instant,
}

impl<F: Fn(Sign)> Life<F> {
    fn new(birth: Birth, replay: InFlight, told: F) -> Self {
        let now = Instant::now();
        Self {
            start: now + birth.after,
            hand: Hand::new(birth.model.name.clone(), replay),
            panics: Restarts::new(birth.house.config.restarts),
            birth,
            told,
            link: None,
            greeted: false,
            ready: false,
            pings: HashMap::new(),
            pings_sent: 0,
            heard_at: now,
            ping_at: now,
            idle_since: now,
        }
    }

    fn has_work(&self) -> bool {
        !self.ready || !self.hand.is_empty() || !self.pings.is_empty()
    }

    fn silence_ends(&self) -> Instant {
        self.heard_at + self.birth.house.config.limits.decoder_silence
    }

    fn next_ping(&self) -> Instant {
        let limits = &self.birth.house.config.limits;
        Instant::now() + limits.prompter_time.min(limits.decoder_silence / PINGS_IN_SILENCE)
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

    fn rung(&mut self, due: Instant) -> Next {
        if self.link.is_none() {
            return self.launch();
        }
        if !self.has_work() {
            return Next::Break(Fate::Close(Cause::Idle));
        }
        if due.elapsed() >= STOOD_STILL {
            self.heard_at = Instant::now();
        }
        if Instant::now() >= self.silence_ends() {
            let silence = self.birth.house.config.limits.decoder_silence.as_secs();
            return Next::Break(Fate::Kill(format!("its decoder gave no sign for {silence} s")));
        }
        if self.ready {
            self.ping();
        }
        Next::Continue(())
    }

    fn launch(&mut self) -> Next {
        match (self.birth.house.launch)(&self.birth.model.name) {
            Ok(link) => {
                (self.told)(Sign::Started { pid: link.pid() });
                self.link = Some(link);
                self.heard_at = Instant::now();
                Next::Continue(())
            }
            Err(error) => Next::Break(Fate::Close(Cause::Died(format!("could not be started: {error}")))),
        }
    }

    fn ping(&mut self) -> u64 {
        self.pings_sent += 1;
        self.ping_at = self.next_ping();
        let id = self.pings_sent;
        if let Some(link) = &mut self.link {
            // A ping always fits a frame.
            let _ = link.post(ToWorker::Ping { id });
        }
        id
    }

    fn take(&mut self, errand: Option<Errand>) -> Next {
        let Some(errand) = errand else { return Next::Break(Fate::Close(Cause::Dismissed)) };
        if !self.has_work() {
            self.heard_at = Instant::now();
            self.ping_at = self.next_ping();
        }
        match errand {
            Errand::Complete(complete, in_hand) => self.hand.complete(complete, in_hand),
            Errand::Ask(ask) => self.hand.ask(ask),
            Errand::Ping(reply) if self.ready => {
                self.pings.retain(|_, waits| !waits.is_closed());
                let id = self.ping();
                self.pings.insert(id, reply);
            }
            Errand::Ping(_) => {}
        }
        self.send();
        Next::Continue(())
    }

    fn send(&mut self) {
        if let (true, Some(link)) = (self.ready, &mut self.link) {
            self.hand.send(link);
        }
    }

    fn cancel(&mut self, id: u64) -> Next {
        self.hand.cancel(id, self.link.as_mut());
        self.idle_since = Instant::now();
        Next::Continue(())
    }

    fn heard(&mut self, heard: Result<Option<FromWorker>, frame::Error>) -> Next {
        let message = match heard {
            Ok(Some(message)) => message,
            Ok(None) | Err(frame::Error::Io(_)) => return Next::Break(Fate::Ended),
            Err(error) => return Next::Break(Fate::Kill(format!("it sent {error}"))),
        };
        // These may be the prompter's; a decoder at work says steps and pongs.
        if !matches!(message, FromWorker::Answer { .. } | FromWorker::End { .. }) {
            self.heard_at = Instant::now();
            (self.told)(Sign::Heard(self.heard_at));
        }
        let Some(link) = &mut self.link else { return Next::Continue(()) };
        match message {
            FromWorker::Hello { wire: WIRE } => {
                self.greeted = true;
                let load = ToWorker::Load { source: self.birth.model.source.clone(), settings: self.birth.house.config.settings.clone() };
                if let Err(error) = link.post(load) {
                    return Next::Break(Fate::Close(Cause::Refused(Error::Internal(error.to_string()))));
                }
            }
            FromWorker::Hello { wire } => return Next::Break(Fate::Close(Cause::Refused(other_version(wire)))),
            FromWorker::Broken { cause } => return Next::Break(Fate::Close(Cause::Died(cause))),
            _ if !self.greeted => return Next::Break(Fate::Kill("it spoke before its hello".into())),
            FromWorker::Loading { done, total } => {
                (self.told)(Sign::Loading { done, total });
            }
            FromWorker::Loaded(Ok(model_info)) => {
                self.ready = true;
                self.ping_at = self.next_ping();
                self.idle_since = self.heard_at;
                if self.birth.model_info.as_ref().is_some_and(|before| *before != model_info) {
                    self.hand.lose_begun("its files are another model's now");
                }
                (self.told)(Sign::Ready(model_info));
                self.send();
            }
            FromWorker::Loaded(Err(error)) => return Next::Break(Fate::Close(Cause::Refused(error))),
            FromWorker::Step { id, step } => {
                if let Err(wrong) = self.hand.record(id, step, link) {
                    return Next::Break(Fate::Kill(wrong));
                }
            }
            FromWorker::End { id, end } => {
                self.idle_since = Instant::now();
                let panicked = if let End::Failed(error) = &end { panicked(error) } else { None };
                self.hand.end(id, end, link);
                return self.count(panicked);
            }
            FromWorker::Answer { id, answer } => {
                self.idle_since = Instant::now();
                let panicked = answer.as_ref().err().and_then(panicked);
                self.hand.answer(id, answer);
                return self.count(panicked);
            }
            FromWorker::Pong { id, status } => {
                let limit = self.birth.house.config.limits.prompter_time;
                if let Some(Prompting { id, .. }) = status.prompting.filter(|prompting| prompting.time > limit) {
                    let cause = format!("its prompter was at one request for more than {} s", limit.as_secs());
                    // What is known to be to blame is not tried again.
                    self.hand.lose(id, &cause);
                    return Next::Break(Fate::Kill(cause));
                }
                if let Some(reply) = self.pings.remove(&id) {
                    // Who asked may have waited long enough.
                    let _ = reply.send(status);
                }
            }
        }
        Next::Continue(())
    }

    /// A stage that keeps panicking takes its worker with it, as often as a worker may die.
    fn count(&mut self, panicked: Option<String>) -> Next {
        match panicked.map(|stage| (self.panics.died(Instant::now(), true), stage)) {
            Some((Verdict::GiveUp, stage)) => Next::Break(Fate::Close(Cause::Died(format!("its {stage} panicked too often")))),
            Some((Verdict::RestartAfter(_), _)) | None => Next::Continue(()),
        }
    }
}

/// The stage that panicked for a request or question, if that is how it ended.
fn panicked(error: &Error) -> Option<String> {
    if let Error::StagePanicked { stage, .. } = error { Some(stage.clone()) } else { None }
}

pub(super) fn other_version(wire: u32) -> Error {
    Error::Internal(format!("the worker speaks version {wire} of the wire, the front {WIRE}; they are of different builds"))
}
