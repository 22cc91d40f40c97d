//! One model: its states, its lives, its restarts. Per token it does nothing: that is its worker's life.

mod door;

pub(super) use door::{Load, Loading, Look, Show, Unload};

use super::{
    errand::{Ask, Cause, Complete, Errand, InFlight, InHand, Sign, WorkerEnded},
    house::House,
    life::{Birth, life},
    restarts::{Restarts, Verdict},
};
use crate::actors::{Error, ModelInfo, ModelState, Result};
use crate::config::Model;
use actix::{Actor, AsyncContext, Context, Handler, Message};
use futures_util::FutureExt;
use std::{collections::VecDeque, convert::Infallible, mem, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::Instant,
};

/// Errands beside the requests in hand, which have tickets: pings. One that finds no place is not sent.
pub(super) const PINGS: usize = 64;
/// Deaths whose causes are told: as many as give a model up by default, and some before.
const DEATHS: usize = 8;

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
        waiting: Vec<oneshot::Sender<Infallible>>,
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
    /// A life was ready since the last death.
    lived: bool,
    /// Why it was given up, until a load succeeds.
    given_up: Option<String>,
    deaths: u32,
    last_deaths: VecDeque<(String, Instant)>,
    model_info: Option<ModelInfo>,
    progress: Arc<watch::Sender<(u64, u64)>>,
    /// When the decoder was last heard.
    heard: Arc<watch::Sender<Option<Instant>>>,
    loads: Vec<oneshot::Sender<Result<ModelInfo>>>,
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
            lived: false,
            house,
            given_up: None,
            deaths: 0,
            last_deaths: VecDeque::new(),
            model_info: None,
            progress: Arc::new(watch::Sender::default()),
            heard: Arc::new(watch::Sender::default()),
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
        self.heard.send_replace(None);
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
        let (progress, heard) = (self.progress.clone(), self.heard.clone());
        let told = move |sign| match sign {
            Sign::Loading { done, total } => drop(progress.send_replace((done, total))),
            Sign::Heard(at) => drop(heard.send_replace(Some(at))),
            sign @ (Sign::Started { .. } | Sign::Ready(_)) => {
                if let Some(model) = model.upgrade() {
                    model.do_send(Told { life: number, sign });
                }
            }
        };
        let birth =
            Birth { life: number, model: self.model.clone(), house: self.house.clone(), after, model_info: self.model_info.clone() };
        let model = ctx.address().downgrade();
        actix::spawn(async move {
            let ended = AssertUnwindSafe(life(birth, in_flight, inbox, told)).catch_unwind().await;
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

    fn loaded(&mut self, outcome: &Result<ModelInfo>) {
        for load in self.loads.drain(..) {
            // Who waited may have left.
            let _ = load.send(outcome.clone());
        }
    }

    fn died(&mut self, cause: String, in_flight: InFlight, unsent: Vec<Errand>, ctx: &Context<Self>) {
        let model = self.model.name.clone();
        self.deaths += 1;
        self.last_deaths.push_back((cause.clone(), Instant::now()));
        if self.last_deaths.len() > DEATHS {
            self.last_deaths.pop_front();
        }
        match self.restarts.died(Instant::now(), mem::take(&mut self.lived)) {
            Verdict::RestartAfter(after) => self.begin(in_flight, unsent, after, ctx),
            Verdict::GiveUp => {
                tracing::error!(model, "its workers died too often; an explicit load tries again");
                self.state = State::Failed(cause.clone());
                self.end_all(in_flight, unsent, &Error::ModelFailed { model, cause });
            }
        }
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

impl Handler<Told> for ModelActor {
    type Result = ();

    fn handle(&mut self, Told { life, sign }: Told, _: &mut Self::Context) {
        let (true, State::Alive(alive)) = (life == self.lives, &mut self.state) else { return };
        match sign {
            Sign::Started { pid } => alive.pid = pid,
            Sign::Loading { .. } | Sign::Heard(_) => {}
            Sign::Ready(model_info) => {
                alive.state = ModelState::Ready;
                self.lived = true;
                self.given_up = None;
                tracing::info!(model = self.model.name, pid = alive.pid, "model loaded");
                self.model_info = Some(model_info.clone());
                self.loaded(&Ok(model_info));
            }
        }
    }
}

impl Handler<WorkerEnded> for ModelActor {
    type Result = ();

    fn handle(&mut self, ended: WorkerEnded, ctx: &mut Self::Context) {
        let WorkerEnded { life, in_flight, mut unsent, cause } = ended;
        let late = match mem::replace(&mut self.state, State::Unloaded) {
            State::Alive(alive) => alive.late,
            State::Ending { why, waiting, .. } => {
                self.end_all(in_flight, unsent, &why);
                drop(waiting);
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
            Cause::Died(cause) => {
                tracing::warn!(model = self.model.name, life, cause, in_flight = in_flight.len(), "worker died");
                self.died(cause, in_flight, unsent, ctx);
            }
            Cause::Refused(error) => {
                tracing::warn!(model = self.model.name, %error, "model could not be loaded");
                self.state = self.given_up.take().map_or(State::Unloaded, State::Failed);
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
