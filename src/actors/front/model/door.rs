//! What a model's actor is asked from outside: to load, to unload, to show itself.

use super::{Alive, ModelActor, State};
use crate::actors::{
    Death, Error, ModelInfo, ModelState, ModelStatus, Result,
    front::{
        errand::{Errand, InFlight},
        inspect::inspect,
    },
};
use actix::{AsyncContext, Handler, Message, MessageResult, ResponseFuture};
use std::{convert::Infallible, mem, sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

/// A `status` is not worth a longer wait; a decoder that does not answer by then is told as such.
const PING_TIME: Duration = Duration::from_secs(1);

/// Loads the model if it isn't, also when it has failed.
#[derive(Message)]
#[rtype(result = "Loading")]
pub(in crate::actors::front) struct Load;

pub(in crate::actors::front) struct Loading {
    /// Bytes of weights, done and in all.
    pub(in crate::actors::front) progress: watch::Receiver<(u64, u64)>,
    pub(in crate::actors::front) outcome: oneshot::Receiver<Result<ModelInfo>>,
}

/// Ends the worker; what it has in hand is answered with this. The sender is dropped when the worker's memory is back.
#[derive(Message)]
#[rtype(result = "oneshot::Receiver<Infallible>")]
pub(in crate::actors::front) struct Unload(pub(in crate::actors::front) Error);

#[derive(Message)]
#[rtype(result = "oneshot::Receiver<Result<ModelInfo>>")]
pub(in crate::actors::front) struct Show;

#[derive(Message)]
#[rtype(result = "ModelStatus")]
pub(in crate::actors::front) struct Look {
    /// Also at the decode loop.
    pub(in crate::actors::front) decoder: bool,
}

impl Handler<Load> for ModelActor {
    type Result = MessageResult<Load>;

    fn handle(&mut self, _: Load, ctx: &mut Self::Context) -> Self::Result {
        match &self.state {
            State::Unloaded => self.begin(InFlight::new(), Vec::new(), Duration::ZERO, ctx),
            State::Failed(cause) => {
                self.given_up = Some(cause.clone());
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
        self.given_up = None;
        match mem::replace(&mut self.state, State::Unloaded) {
            State::Unloaded | State::Failed(_) => drop(done),
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
    type Result = MessageResult<Show>;

    fn handle(&mut self, _: Show, _: &mut Self::Context) -> Self::Result {
        if let State::Alive(_) = self.state {
            return MessageResult(self.outcome());
        }
        let (mut show, outcome) = oneshot::channel();
        let (house, model, inspection) = (self.house.clone(), self.model.clone(), self.inspection.clone());
        actix::spawn(async move {
            let inspected = async {
                let _one = inspection.lock().await;
                inspect(&house, &model).await
            };
            let inspected = tokio::select! {
                // Nobody waits any more.
                () = show.closed() => return,
                inspected = inspected => inspected,
            };
            let _ = show.send(inspected);
        });
        MessageResult(outcome)
    }
}

impl Handler<Look> for ModelActor {
    type Result = ResponseFuture<ModelStatus>;

    fn handle(&mut self, look: Look, ctx: &mut Self::Context) -> Self::Result {
        let (state, worker_pid) = match &self.state {
            State::Unloaded => (ModelState::Unloaded, None),
            State::Alive(alive) => (alive.state, alive.pid),
            State::Ending { pid, .. } => (ModelState::Unloaded, *pid),
            State::Failed(_) => (ModelState::Failed, None),
        };
        let pong = match &self.state {
            // The other places are those of requests.
            State::Alive(alive)
                if look.decoder
                    && alive.state == ModelState::Ready
                    && alive.errands.capacity() > self.house.config.limits.requests_in_flight =>
            {
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
            deaths: self.last_deaths.iter().map(|(cause, at)| Death { cause: cause.clone(), ago: at.elapsed() }).collect(),
            last_sign: None,
            info: self.model_info.clone(),
            decoder: None,
        };
        let heard = matches!(self.state, State::Alive(_)).then(|| self.heard.subscribe());
        let address = ctx.address();
        Box::pin(async move {
            if let Some(pong) = pong {
                match timeout(PING_TIME, pong).await {
                    Ok(Ok(decoder)) => status.decoder = Some(decoder),
                    // Its worker ended meanwhile, so the state is another by now.
                    Ok(Err(_)) => return address.send(Look { decoder: false }).await.unwrap_or(status),
                    Err(_) => status.state = ModelState::Stalled,
                }
            }
            status.last_sign = heard.and_then(|heard| heard.borrow().map(|at| at.elapsed()));
            status
        })
    }
}

impl ModelActor {
    /// A load's outcome, for one more who waits for it.
    fn outcome(&mut self) -> oneshot::Receiver<Result<ModelInfo>> {
        let (load, outcome) = oneshot::channel();
        match (&self.state, &self.model_info) {
            (State::Alive(Alive { state: ModelState::Ready, .. }), Some(model_info)) => drop(load.send(Ok(model_info.clone()))),
            (State::Ending { why, .. }, _) => drop(load.send(Err(why.clone()))),
            (State::Alive(_) | State::Unloaded | State::Failed(_), _) => {
                self.loads.retain(|load| !load.is_closed());
                self.loads.push(load);
            }
        }
        outcome
    }
}
