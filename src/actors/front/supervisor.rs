//! Knows every model's actor, and makes a new one for one that panicked.

use super::{
    errand::Complete,
    house::House,
    model::{Look, ModelActor, Unload},
};
use crate::actors::{Error, ModelStatus};
use crate::config::Model;
use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, Context, Handler, Message, MessageResult, ResponseActFuture, ResponseFuture, WrapFuture,
    dev::SendError,
};
use futures_util::future::join_all;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::watch;

/// The actor of a model, or `None` for a name that is not configured.
#[derive(Message)]
#[rtype(result = "Option<Addr<ModelActor>>")]
pub(super) struct Find(pub(super) String);

#[derive(Message)]
#[rtype(result = "Vec<ModelStatus>")]
pub(super) struct LookAtAll {
    pub(super) decoder: bool,
}

/// Ends every worker, and refuses what comes later.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Close;

pub(super) struct Supervisor {
    house: Arc<House>,
    models: HashMap<String, Addr<ModelActor>>,
    closing: bool,
    /// Dropped with the supervisor, also when it panics.
    _alive: watch::Sender<()>,
}

impl Supervisor {
    pub(super) fn new(house: Arc<House>, alive: watch::Sender<()>) -> Self {
        Self { house, models: HashMap::new(), closing: false, _alive: alive }
    }

    fn model(&mut self, name: &str) -> Option<Addr<ModelActor>> {
        if let Some(actor) = self.models.get(name).filter(|actor| actor.connected()) {
            return Some(actor.clone());
        }
        let model: &Model = self.house.config.models.iter().find(|model| model.name == name)?;
        let actor = ModelActor::new(model.clone(), self.house.clone()).start();
        if self.models.insert(name.to_owned(), actor.clone()).is_some() {
            tracing::error!(model = name, "the actor of a model panicked; it has a new one");
        }
        Some(actor)
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.house.mailbox());
    }
}

impl Handler<Complete> for Supervisor {
    type Result = ();

    fn handle(&mut self, complete: Complete, _: &mut Self::Context) {
        if self.closing {
            return complete.recorder.fail(Error::ShuttingDown);
        }
        let name = complete.request.model.clone();
        let Some(actor) = self.model(&name) else {
            return complete.recorder.fail(self.house.unknown(&name));
        };
        match actor.try_send(complete) {
            Ok(()) => {}
            Err(SendError::Full(complete)) => complete.recorder.fail(self.house.overloaded()),
            // Its drop guard says that it is lost; the next request gets a new actor.
            Err(SendError::Closed(_)) => {}
        }
    }
}

impl Handler<Find> for Supervisor {
    type Result = MessageResult<Find>;

    fn handle(&mut self, Find(name): Find, _: &mut Self::Context) -> Self::Result {
        MessageResult(if self.closing { None } else { self.model(&name) })
    }
}

impl Handler<LookAtAll> for Supervisor {
    type Result = ResponseFuture<Vec<ModelStatus>>;

    fn handle(&mut self, LookAtAll { decoder }: LookAtAll, _: &mut Self::Context) -> Self::Result {
        let names: Vec<_> = self.house.config.models.iter().map(|model| model.name.clone()).collect();
        let looks: Vec<_> = names.iter().filter_map(|name| self.model(name)).map(|actor| actor.send(Look { decoder })).collect();
        Box::pin(async move { join_all(looks).await.into_iter().flatten().collect() })
    }
}

impl Handler<Close> for Supervisor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Close, _: &mut Self::Context) -> Self::Result {
        self.closing = true;
        let unloads: Vec<_> = self.models.values().map(|actor| actor.send(Unload(Error::ShuttingDown))).collect();
        let ended = async move {
            let ended = join_all(unloads).await.into_iter().flatten();
            // An actor that is gone took its worker with it.
            join_all(ended).await;
        };
        Box::pin(ended.into_actor(self).map(|(), _, ctx| ctx.stop()))
    }
}
