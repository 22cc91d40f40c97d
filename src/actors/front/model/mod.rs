//! The actor of one model: its state, worker sessions and restarts. Tokens don't pass through it; the session handles them.

pub(super) mod queries;

use super::{
    command::{ActiveRequests, Ask, Command, Complete, ExitReason, RequestCounter, WorkerEnded, WorkerEvent},
    context::RuntimeContext,
    restart_policy::{Decision, RestartPolicy},
    session::{SessionSpec, run_session},
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

/// Capacity of the command channel for pings, beyond that for requests. When it is used up, no further ping is sent.
pub(super) const PINGS: usize = 64;
/// How many deaths `status` reports with their causes: more than the default restart limit.
const RECENT_DEATHS: usize = 8;

#[derive(Message)]
#[rtype(result = "()")]
struct WorkerEventMsg {
    session: u64,
    event: WorkerEvent,
}

enum State {
    Unloaded,
    Active(ActiveSession),
    Unloading {
        error: Error,
        waiters: Vec<oneshot::Sender<Infallible>>,
        pid: Option<u32>,
    },
    /// With the cause of the last death.
    Failed(String),
}

struct ActiveSession {
    commands: mpsc::Sender<Command>,
    state: ModelState,
    pid: Option<u32>,
    /// Commands that arrived after the session had ended and before its `WorkerEnded` did.
    late: Vec<Command>,
}

pub(super) struct ModelActor {
    model: Model,
    context: Arc<RuntimeContext>,
    state: State,
    /// Number of the latest session, counted from 1.
    session: u64,
    restart_policy: RestartPolicy,
    /// A session became ready since the last death.
    was_ready: bool,
    /// The failure that an explicit load retries, until that load succeeds.
    retried_failure: Option<String>,
    deaths: u32,
    recent_deaths: VecDeque<(String, Instant)>,
    model_info: Option<ModelInfo>,
    progress: Arc<watch::Sender<(u64, u64)>>,
    /// When the decoder last sent a message.
    last_activity: Arc<watch::Sender<Option<Instant>>>,
    load_waiters: Vec<oneshot::Sender<Result<ModelInfo>>>,
    requests: RequestCounter,
    /// Held during an inspection, so that frequent `show` calls don't start many workers.
    inspection: Arc<Mutex<()>>,
}

impl ModelActor {
    pub(super) fn new(model: Model, context: Arc<RuntimeContext>) -> Self {
        Self {
            model,
            state: State::Unloaded,
            session: 0,
            restart_policy: RestartPolicy::new(context.config.restarts),
            was_ready: false,
            context,
            retried_failure: None,
            deaths: 0,
            recent_deaths: VecDeque::new(),
            model_info: None,
            progress: Arc::new(watch::Sender::default()),
            last_activity: Arc::new(watch::Sender::default()),
            load_waiters: Vec::new(),
            requests: RequestCounter::default(),
            inspection: Arc::default(),
        }
    }

    fn submit(&mut self, command: Command, ctx: &Context<Self>) {
        match &mut self.state {
            State::Unloaded => self.start_session(ActiveRequests::new(), vec![command], Duration::ZERO, ctx),
            State::Active(active) => match active.commands.try_send(command) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(command)) => active.late.push(command),
                Err(mpsc::error::TrySendError::Full(command)) => command.fail(self.context.overloaded()),
            },
            State::Unloading { error, .. } => command.fail(error.clone()),
            State::Failed(cause) => command.fail(Error::ModelFailed { model: self.model.name.clone(), cause: cause.clone() }),
        }
    }

    fn start_session(&mut self, replay: ActiveRequests, unsent: Vec<Command>, delay: Duration, ctx: &Context<Self>) {
        self.session += 1;
        let id = self.session;
        self.progress.send_replace((0, 0));
        self.last_activity.send_replace(None);
        let (commands, inbox) = mpsc::channel(self.context.config.limits.requests_in_flight + PINGS);
        for command in unsent {
            if let Err(refused) = commands.try_send(command) {
                refused.into_inner().fail(self.context.overloaded());
            }
        }
        let state = if delay.is_zero() { ModelState::Loading } else { ModelState::Restarting };
        self.state = State::Active(ActiveSession { commands, state, pid: None, late: Vec::new() });

        // Weak, so that a session doesn't keep an actor alive that nothing else refers to.
        let model = ctx.address().downgrade();
        let (progress, last_activity) = (self.progress.clone(), self.last_activity.clone());
        let notify = move |event| match event {
            WorkerEvent::Loading { done, total } => drop(progress.send_replace((done, total))),
            WorkerEvent::Activity(at) => drop(last_activity.send_replace(Some(at))),
            event @ (WorkerEvent::Started { .. } | WorkerEvent::Ready(_)) => {
                if let Some(model) = model.upgrade() {
                    model.do_send(WorkerEventMsg { session: id, event });
                }
            }
        };
        let (context, model_info) = (self.context.clone(), self.model_info.clone());
        let spec = SessionSpec { id, model: self.model.clone(), context, delay, model_info };
        let model = ctx.address().downgrade();
        actix::spawn(async move {
            let ended = AssertUnwindSafe(run_session(spec, replay, inbox, notify)).catch_unwind().await;
            let ended = ended.unwrap_or_else(|_| WorkerEnded {
                session: id,
                requests: ActiveRequests::new(),
                unsent: Vec::new(),
                reason: ExitReason::Died("its session panicked".into()),
            });
            // Without an actor the message is dropped, which ends every request in it.
            if let Some(model) = model.upgrade() {
                model.do_send(ended);
            }
        });
    }

    fn fail_all(&mut self, requests: ActiveRequests, unsent: Vec<Command>, error: &Error) {
        requests.into_values().for_each(|active| active.writer.fail(error.clone()));
        unsent.into_iter().for_each(|command| command.fail(error.clone()));
        self.finish_loads(&Err(error.clone()));
    }

    fn finish_loads(&mut self, outcome: &Result<ModelInfo>) {
        for waiter in self.load_waiters.drain(..) {
            // Fails when the caller stopped waiting.
            let _ = waiter.send(outcome.clone());
        }
    }

    fn on_death(&mut self, cause: String, requests: ActiveRequests, unsent: Vec<Command>, ctx: &Context<Self>) {
        let model = self.model.name.clone();
        self.deaths += 1;
        self.recent_deaths.push_back((cause.clone(), Instant::now()));
        if self.recent_deaths.len() > RECENT_DEATHS {
            self.recent_deaths.pop_front();
        }
        match self.restart_policy.on_death(Instant::now(), mem::take(&mut self.was_ready)) {
            Decision::RestartAfter(delay) => self.start_session(requests, unsent, delay, ctx),
            Decision::GiveUp => {
                tracing::error!(model, "restart limit reached; load the model again to retry");
                self.state = State::Failed(cause.clone());
                self.fail_all(requests, unsent, &Error::ModelFailed { model, cause });
            }
        }
    }
}

impl Actor for ModelActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.context.mailbox_capacity());
    }
}

impl Handler<Complete> for ModelActor {
    type Result = ();

    fn handle(&mut self, complete: Complete, ctx: &mut Self::Context) {
        self.submit(Command::Complete(complete, self.requests.add()), ctx);
    }
}

impl Handler<Ask> for ModelActor {
    type Result = ();

    fn handle(&mut self, ask: Ask, ctx: &mut Self::Context) {
        self.submit(Command::Ask(ask), ctx);
    }
}

impl Handler<WorkerEventMsg> for ModelActor {
    type Result = ();

    fn handle(&mut self, WorkerEventMsg { session, event }: WorkerEventMsg, _: &mut Self::Context) {
        let (true, State::Active(active)) = (session == self.session, &mut self.state) else { return };
        match event {
            WorkerEvent::Started { pid } => active.pid = pid,
            WorkerEvent::Loading { .. } | WorkerEvent::Activity(_) => {}
            WorkerEvent::Ready(model_info) => {
                active.state = ModelState::Ready;
                self.was_ready = true;
                self.retried_failure = None;
                tracing::info!(model = self.model.name, pid = active.pid, "model loaded");
                self.model_info = Some(model_info.clone());
                self.finish_loads(&Ok(model_info));
            }
        }
    }
}

impl Handler<WorkerEnded> for ModelActor {
    type Result = ();

    fn handle(&mut self, ended: WorkerEnded, ctx: &mut Self::Context) {
        let WorkerEnded { session, requests, mut unsent, reason } = ended;
        let late = match mem::replace(&mut self.state, State::Unloaded) {
            State::Active(active) => active.late,
            State::Unloading { error, waiters, .. } => {
                self.fail_all(requests, unsent, &error);
                drop(waiters);
                return;
            }
            // Unreachable: a session starts only after the previous one has ended, and these states have none.
            state @ (State::Unloaded | State::Failed(_)) => {
                self.state = state;
                return;
            }
        };
        unsent.extend(late);
        match reason {
            ExitReason::Died(cause) => {
                tracing::warn!(model = self.model.name, session, cause, in_flight = requests.len(), "worker died");
                self.on_death(cause, requests, unsent, ctx);
            }
            ExitReason::LoadFailed(error) => {
                tracing::warn!(model = self.model.name, %error, "model could not be loaded");
                self.state = self.retried_failure.take().map_or(State::Unloaded, State::Failed);
                self.fail_all(requests, unsent, &error);
            }
            ExitReason::Idle | ExitReason::CommandsClosed if requests.is_empty() && unsent.is_empty() && self.load_waiters.is_empty() => {
                tracing::info!(model = self.model.name, "idle model unloaded");
            }
            // Work arrived while the session ended.
            ExitReason::Idle | ExitReason::CommandsClosed => self.start_session(requests, unsent, Duration::ZERO, ctx),
        }
    }
}
