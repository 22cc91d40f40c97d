//! One model: its states, its restarts, its loads. Per token it does nothing: that is its worker's life.

use super::{
    errand::{Ask, Cause, Complete, Errand, InFlight, InHand, Sign, WorkerEnded},
    inspect::inspect,
    life::{Birth, House, life},
    restarts::{Restarts, Verdict},
};
use crate::actors::{Card, Error, ModelState, ModelStatus, Result};
use crate::config::Model;
use actix::{Actor, AsyncContext, Context, Handler, Message, MessageResult, ResponseFuture};
use futures_util::FutureExt;
use std::{mem, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::{Instant, timeout},
};

/// Errands beside the requests in hand, which have tickets: pings, of which each connection may have one.
const PINGS: usize = 64;
/// A `status` is not worth a longer wait; a decoder that does not answer by then is told as such.
const PING_TIME: Duration = Duration::from_secs(1);

/// Loads the model if it isn't, and forgets that it has failed.
#[derive(Message)]
#[rtype(result = "Loading")]
pub(super) struct Load;

pub(super) struct Loading {
    /// Bytes of weights, done and in all.
    pub(super) progress: watch::Receiver<(u64, u64)>,
    pub(super) outcome: oneshot::Receiver<Result<Card>>,
}

/// Ends the worker; what it has in hand is answered with this. The receiver hears when its memory is back.
#[derive(Message)]
#[rtype(result = "oneshot::Receiver<()>")]
pub(super) struct Unload(pub(super) Error);

#[derive(Message)]
#[rtype(result = "Result<Card>")]
pub(super) struct Show;

#[derive(Message)]
#[rtype(result = "ModelStatus")]
pub(super) struct Look {
    /// Also at the decode loop.
    pub(super) decoder: bool,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Told {
    life: u64,
    sign: Sign,
}

enum State {
    Unloaded,
    Alive(Alive),
    Ending {
        why: Error,
        waiting: Vec<oneshot::Sender<()>>,
        pid: Option<u32>,
    },
    /// With its last cause.
    Failed(String),
}

struct Alive {
    errands: mpsc::Sender<Errand>,
    state: ModelState,
    pid: Option<u32>,
    /// Errands that came when the life had ended and its last message was on the way.
    late: Vec<Errand>,
}

pub(super) struct ModelActor {
    model: Model,
    house: Arc<House>,
    state: State,
    /// Lives so far; the last one's number.
    lives: u64,
    restarts: Restarts,
    deaths: u32,
    last_cause: Option<String>,
    card: Option<Card>,
    progress: Arc<watch::Sender<(u64, u64)>>,
    loads: Vec<oneshot::Sender<Result<Card>>>,
    in_hand: InHand,
    /// One inspection at a time: a list that is asked for often must not start a crowd of workers.
    inspection: Arc<Mutex<()>>,
}

impl ModelActor {
    pub(super) fn new(model: Model, house: Arc<House>) -> Self {
        Self {
            model,
            state: State::Unloaded,
            lives: 0,
            restarts: Restarts::new(house.config.restarts),
            house,
            deaths: 0,
            last_cause: None,
            card: None,
            progress: Arc::new(watch::Sender::default()),
            loads: Vec::new(),
            in_hand: InHand::default(),
            inspection: Arc::default(),
        }
    }

    fn take(&mut self, errand: Errand, ctx: &Context<Self>) {
        match &mut self.state {
            State::Unloaded => self.begin(InFlight::new(), vec![errand], Duration::ZERO, ctx),
            State::Alive(alive) => match alive.errands.try_send(errand) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(errand)) => alive.late.push(errand),
                Err(mpsc::error::TrySendError::Full(errand)) => errand.fail(self.house.overloaded()),
            },
            State::Ending { why, .. } => errand.fail(why.clone()),
            State::Failed(cause) => errand.fail(Error::ModelFailed { model: self.model.name.clone(), cause: cause.clone() }),
        }
    }

    /// The next life.
    fn begin(&mut self, in_flight: InFlight, waiting: Vec<Errand>, after: Duration, ctx: &Context<Self>) {
        self.lives += 1;
        let number = self.lives;
        self.progress.send_replace((0, 0));
        let (errands, inbox) = mpsc::channel(self.house.config.limits.requests_in_flight + PINGS);
        for errand in waiting {
            if let Err(refused) = errands.try_send(errand) {
                refused.into_inner().fail(self.house.overloaded());
            }
        }
        let state = if after.is_zero() { ModelState::Loading } else { ModelState::Restarting };
        self.state = State::Alive(Alive { errands, state, pid: None, late: Vec::new() });

        // Weak: a life must not keep the actor that nobody else knows any more.
        let model = ctx.address().downgrade();
        let progress = self.progress.clone();
        let told = move |sign| match sign {
            Sign::Loading { done, total } => drop(progress.send_replace((done, total))),
            sign @ (Sign::Started { .. } | Sign::Ready(_)) => {
                if let Some(model) = model.upgrade() {
                    model.do_send(Told { life: number, sign });
                }
            }
        };
        let birth = Birth { life: number, model: self.model.clone(), house: self.house.clone(), in_flight, after };
        let model = ctx.address().downgrade();
        actix::spawn(async move {
            let ended = AssertUnwindSafe(life(birth, inbox, told)).catch_unwind().await;
            let ended = ended.unwrap_or_else(|_| WorkerEnded {
                life: number,
                in_flight: InFlight::new(),
                unsent: Vec::new(),
                cause: Cause::Died("its life panicked".into()),
            });
            // With nobody to hear it, what is in it is answered by being dropped.
            if let Some(model) = model.upgrade() {
                model.do_send(ended);
            }
        });
    }

    fn end_all(&mut self, in_flight: InFlight, unsent: Vec<Errand>, error: &Error) {
        in_flight.into_values().for_each(|flight| flight.recorder.fail(error.clone()));
        unsent.into_iter().for_each(|errand| errand.fail(error.clone()));
        self.loaded(&Err(error.clone()));
    }

    fn loaded(&mut self, outcome: &Result<Card>) {
        for load in self.loads.drain(..) {
            // Who waited may have left.
            let _ = load.send(outcome.clone());
        }
    }

    /// A load's outcome, for one more who waits for it.
    fn outcome(&mut self) -> oneshot::Receiver<Result<Card>> {
        let (load, outcome) = oneshot::channel();
        match (&self.state, &self.card) {
            (State::Alive(Alive { state: ModelState::Ready, .. }), Some(card)) => drop(load.send(Ok(card.clone()))),
            (State::Ending { why, .. }, _) => drop(load.send(Err(why.clone()))),
            (State::Alive(_) | State::Unloaded | State::Failed(_), _) => self.loads.push(load),
        }
        outcome
    }

    fn died(&mut self, cause: String, in_flight: InFlight, unsent: Vec<Errand>, ctx: &Context<Self>) {
        let model = self.model.name.clone();
        self.deaths += 1;
        self.last_cause = Some(cause.clone());
        match self.restarts.died(Instant::now()) {
            Verdict::RestartAfter(after) => {
                tracing::warn!(model, cause, in_flight = in_flight.len(), after_ms = after.as_millis() as u64, "worker died, restarting");
                self.begin(in_flight, unsent, after, ctx);
            }
            Verdict::GiveUp => {
                tracing::error!(model, cause, "worker died too often, giving up");
                self.state = State::Failed(cause.clone());
                self.end_all(in_flight, unsent, &Error::ModelFailed { model, cause });
            }
        }
    }
}

impl House {
    pub(super) fn overloaded(&self) -> Error {
        Error::Overloaded { limit: self.config.limits.requests_in_flight }
    }
}

impl Actor for ModelActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.house.mailbox());
    }
}

impl Handler<Complete> for ModelActor {
    type Result = ();

    fn handle(&mut self, complete: Complete, ctx: &mut Self::Context) {
        self.take(Errand::Complete(complete, self.in_hand.clone()), ctx);
    }
}

impl Handler<Ask> for ModelActor {
    type Result = ();

    fn handle(&mut self, ask: Ask, ctx: &mut Self::Context) {
        self.take(Errand::Ask(ask), ctx);
    }
}

impl Handler<Load> for ModelActor {
    type Result = MessageResult<Load>;

    fn handle(&mut self, _: Load, ctx: &mut Self::Context) -> Self::Result {
        match &self.state {
            State::Unloaded => self.begin(InFlight::new(), Vec::new(), Duration::ZERO, ctx),
            State::Failed(_) => {
                self.restarts.forget();
                self.begin(InFlight::new(), Vec::new(), Duration::ZERO, ctx);
            }
            State::Alive(_) | State::Ending { .. } => {}
        }
        MessageResult(Loading { progress: self.progress.subscribe(), outcome: self.outcome() })
    }
}

impl Handler<Unload> for ModelActor {
    type Result = MessageResult<Unload>;

    fn handle(&mut self, Unload(why): Unload, _: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        match mem::replace(&mut self.state, State::Unloaded) {
            // `done` is dropped or sent: either is heard.
            State::Unloaded | State::Failed(_) => drop(done.send(())),
            State::Alive(Alive { errands, pid, late, .. }) => {
                // Its life hears that there is nothing more to do.
                drop(errands);
                self.end_all(InFlight::new(), late, &why);
                self.state = State::Ending { why, waiting: vec![done], pid };
            }
            State::Ending { why, mut waiting, pid } => {
                waiting.push(done);
                self.state = State::Ending { why, waiting, pid };
            }
        }
        MessageResult(wait)
    }
}

impl Handler<Show> for ModelActor {
    type Result = ResponseFuture<Result<Card>>;

    fn handle(&mut self, _: Show, _: &mut Self::Context) -> Self::Result {
        if let State::Alive(_) = self.state {
            let outcome = self.outcome();
            let lost = Error::WorkerLost { model: self.model.name.clone(), cause: "its supervision ended".into() };
            return Box::pin(async move { outcome.await.unwrap_or(Err(lost)) });
        }
        let (house, model, inspection) = (self.house.clone(), self.model.clone(), self.inspection.clone());
        Box::pin(async move {
            let _one = inspection.lock().await;
            inspect(&house, &model).await
        })
    }
}

impl Handler<Look> for ModelActor {
    type Result = ResponseFuture<ModelStatus>;

    fn handle(&mut self, look: Look, _: &mut Self::Context) -> Self::Result {
        let (state, worker_pid) = match &self.state {
            State::Unloaded => (ModelState::Unloaded, None),
            State::Alive(alive) => (alive.state, alive.pid),
            State::Ending { pid, .. } => (ModelState::Unloaded, *pid),
            State::Failed(_) => (ModelState::Failed, None),
        };
        let pong = match &self.state {
            State::Alive(alive) if look.decoder && alive.state == ModelState::Ready => {
                let (reply, pong) = oneshot::channel();
                alive.errands.try_send(Errand::Ping(reply)).ok().map(|()| pong)
            }
            State::Unloaded | State::Alive(_) | State::Ending { .. } | State::Failed(_) => None,
        };
        let mut status = ModelStatus {
            name: self.model.name.clone(),
            source: self.model.source.clone(),
            state,
            worker_pid,
            in_flight: Arc::strong_count(&self.in_hand) - 1,
            restarts: self.deaths,
            last_cause: self.last_cause.clone(),
            card: self.card.clone(),
            decoder: None,
        };
        Box::pin(async move {
            if let Some(pong) = pong {
                status.decoder = timeout(PING_TIME, pong).await.ok().and_then(|pong| pong.ok());
            }
            status
        })
    }
}

impl Handler<Told> for ModelActor {
    type Result = ();

    fn handle(&mut self, Told { life, sign }: Told, _: &mut Self::Context) {
        let (true, State::Alive(alive)) = (life == self.lives, &mut self.state) else { return };
        match sign {
            Sign::Started { pid } => {
                alive.pid = pid;
                alive.state = ModelState::Loading;
            }
            Sign::Loading { .. } => {}
            Sign::Ready(card) => {
                alive.state = ModelState::Ready;
                tracing::info!(model = self.model.name, pid = alive.pid, "model loaded");
                self.card = Some(card.clone());
                self.loaded(&Ok(card));
            }
        }
    }
}

impl Handler<WorkerEnded> for ModelActor {
    type Result = ();

    fn handle(&mut self, ended: WorkerEnded, ctx: &mut Self::Context) {
        let WorkerEnded { life: _, in_flight, mut unsent, cause } = ended;
        let late = match mem::replace(&mut self.state, State::Unloaded) {
            State::Alive(alive) => alive.late,
            State::Ending { why, waiting, .. } => {
                self.end_all(in_flight, unsent, &why);
                waiting.into_iter().for_each(|done| drop(done.send(())));
                return;
            }
            // No life is begun before the one before it has ended, so these two have none that could end.
            state @ (State::Unloaded | State::Failed(_)) => {
                self.state = state;
                return;
            }
        };
        unsent.extend(late);
        match cause {
            Cause::Died(cause) => self.died(cause, in_flight, unsent, ctx),
            Cause::Refused(error) => {
                tracing::warn!(model = self.model.name, %error, "model could not be loaded");
                self.end_all(in_flight, unsent, &error);
            }
            Cause::Idle | Cause::Dismissed if in_flight.is_empty() && unsent.is_empty() && self.loads.is_empty() => {
                tracing::info!(model = self.model.name, "idle model unloaded");
            }
            // Something came while it ended.
            Cause::Idle | Cause::Dismissed => self.begin(in_flight, unsent, Duration::ZERO, ctx),
        }
    }
}
