//! Messages to a ModelActor beside completions and questions: load, unload, show, status.

use super::{ActiveSession, ModelActor, State};
use crate::actors::{
    Death, Error, ModelInfo, ModelState, ModelStatus, Result,
    front::{
        command::{ActiveRequests, Command},
        inspect::inspect,
    },
};
use actix::{AsyncContext, Handler, Message, MessageResult, ResponseFuture};
use std::{convert::Infallible, mem, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

/// The longest that `status` waits for a decoder, which is reported as stalled after this time.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Loads the model unless it is loaded; retries a model that has failed.
#[derive(Message)]
#[rtype(result = "PendingLoad")]
pub(in crate::actors::front) struct Load;

/// A load, shared by all callers that wait for it.
pub(in crate::actors::front) struct PendingLoad {
    /// Bytes of weights: loaded and total.
    pub(in crate::actors::front) progress: watch::Receiver<(u64, u64)>,
    pub(in crate::actors::front) outcome: oneshot::Receiver<Result<ModelInfo>>,
}

/// Ends the worker and fails its requests with this error. The sender is dropped once the worker's memory is free.
#[derive(Message)]
#[rtype(result = "oneshot::Receiver<Infallible>")]
pub(in crate::actors::front) struct Unload(pub(in crate::actors::front) Error);

#[derive(Message)]
#[rtype(result = "oneshot::Receiver<Result<ModelInfo>>")]
pub(in crate::actors::front) struct Show;

#[derive(Message)]
#[rtype(result = "ModelStatus")]
pub(in crate::actors::front) struct GetStatus {
    /// Queries the worker's decode loop too.
    pub(in crate::actors::front) query_worker: bool,
}

impl Handler<Load> for ModelActor {
    type Result = MessageResult<Load>;

    fn handle(&mut self, _: Load, ctx: &mut Self::Context) -> Self::Result {
        match &self.state {
            State::Unloaded => self.start_session(ActiveRequests::new(), Vec::new(), Duration::ZERO, ctx),
            State::Failed(cause) => {
                self.retried_failure = Some(cause.clone());
                self.start_session(ActiveRequests::new(), Vec::new(), Duration::ZERO, ctx);
            }
            State::Active(_) | State::Unloading { .. } => {}
        }
        MessageResult(PendingLoad { progress: self.progress.subscribe(), outcome: self.load_outcome() })
    }
}

impl Handler<Unload> for ModelActor {
    type Result = MessageResult<Unload>;

    fn handle(&mut self, Unload(error): Unload, _: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        self.retried_failure = None;
        match mem::replace(&mut self.state, State::Unloaded) {
            State::Unloaded | State::Failed(_) => drop(done),
            State::Active(ActiveSession { commands, pid, late, .. }) => {
                // Closes the channel, which ends the session.
                drop(commands);
                self.fail_all(ActiveRequests::new(), late, &error);
                self.state = State::Unloading { error, waiters: vec![done], pid };
            }
            State::Unloading { error, mut waiters, pid } => {
                waiters.push(done);
                self.state = State::Unloading { error, waiters, pid };
            }
        }
        MessageResult(wait)
    }
}

impl Handler<Show> for ModelActor {
    type Result = MessageResult<Show>;

    fn handle(&mut self, _: Show, _: &mut Self::Context) -> Self::Result {
        if let State::Active(_) = self.state {
            return MessageResult(self.load_outcome());
        }
        let (mut reply, outcome) = oneshot::channel();
        let (context, model, inspection) = (self.context.clone(), self.model.clone(), self.inspection.clone());
        actix::spawn(async move {
            let inspected = async {
                let _guard = inspection.lock().await;
                inspect(&context, &model).await
            };
            let inspected = tokio::select! {
                // The caller stopped waiting.
                () = reply.closed() => return,
                inspected = inspected => inspected,
            };
            let _ = reply.send(inspected);
        });
        MessageResult(outcome)
    }
}

impl Handler<GetStatus> for ModelActor {
    type Result = ResponseFuture<ModelStatus>;

    fn handle(&mut self, query: GetStatus, ctx: &mut Self::Context) -> Self::Result {
        let (state, worker_pid) = match &self.state {
            State::Unloaded => (ModelState::Unloaded, None),
            State::Active(active) => (active.state, active.pid),
            State::Unloading { pid, .. } => (ModelState::Unloaded, *pid),
            State::Failed(_) => (ModelState::Failed, None),
        };
        let pong = match &self.state {
            // The last `requests_in_flight` of the channel's capacity are reserved for requests.
            State::Active(active)
                if query.query_worker
                    && active.state == ModelState::Ready
                    && active.commands.capacity() > self.context.config.limits.requests_in_flight =>
            {
                let (reply, pong) = oneshot::channel();
                active.commands.try_send(Command::Ping(reply)).ok().map(|()| pong)
            }
            State::Unloaded | State::Active(_) | State::Unloading { .. } | State::Failed(_) => None,
        };
        let mut status = ModelStatus {
            name: self.model.name.clone(),
            source: self.model.source.clone(),
            state,
            worker_pid,
            in_flight: self.requests.count(),
            restarts: self.deaths,
            deaths: self.recent_deaths.iter().map(|(cause, at)| Death { cause: cause.clone(), ago: at.elapsed() }).collect(),
            last_activity: None,
            info: self.model_info.clone(),
            decoder: None,
        };
        let last_activity = matches!(self.state, State::Active(_)).then(|| self.last_activity.subscribe());
        let address = ctx.address();
        Box::pin(async move {
            if let Some(pong) = pong {
                match timeout(PING_TIMEOUT, pong).await {
                    Ok(Ok(decoder)) => status.decoder = Some(decoder),
                    // The worker ended meanwhile, so the state has changed.
                    Ok(Err(_)) => return address.send(GetStatus { query_worker: false }).await.unwrap_or(status),
                    Err(_) => status.state = ModelState::Stalled,
                }
            }
            status.last_activity = last_activity.and_then(|last| last.borrow().map(|at| at.elapsed()));
            status
        })
    }
}

impl ModelActor {
    /// Resolves to the outcome of the current load.
    fn load_outcome(&mut self) -> oneshot::Receiver<Result<ModelInfo>> {
        let (waiter, outcome) = oneshot::channel();
        match (&self.state, &self.model_info) {
            (State::Active(ActiveSession { state: ModelState::Ready, .. }), Some(model_info)) => {
                drop(waiter.send(Ok(model_info.clone())));
            }
            (State::Unloading { error, .. }, _) => drop(waiter.send(Err(error.clone()))),
            (State::Active(_) | State::Unloaded | State::Failed(_), _) => {
                self.load_waiters.retain(|waiter| !waiter.is_closed());
                self.load_waiters.push(waiter);
            }
        }
        outcome
    }
}
