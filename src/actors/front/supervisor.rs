//! Finds the actor of each model, and replaces one that panicked.

use super::{
    command::Complete,
    context::RuntimeContext,
    model::{
        ModelActor,
        queries::{GetStatus, Unload},
    },
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

/// Returns the actor of a model; `None` for an unknown name, and during shutdown.
#[derive(Message)]
#[rtype(result = "Option<Addr<ModelActor>>")]
pub(super) struct Find(pub(super) String);

#[derive(Message)]
#[rtype(result = "Vec<ModelStatus>")]
pub(super) struct GetAllStatus {
    /// Queries the decode loop of each worker too.
    pub(super) query_workers: bool,
}

/// Ends every worker, and refuses later requests.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Close;

pub(super) struct Supervisor {
    context: Arc<RuntimeContext>,
    models: HashMap<String, Addr<ModelActor>>,
    closing: bool,
    /// Dropped with the supervisor, also when it panics, which resolves `Runtime::ended`.
    _ended_on_drop: watch::Sender<()>,
}

impl Supervisor {
    pub(super) fn new(context: Arc<RuntimeContext>, ended_on_drop: watch::Sender<()>) -> Self {
        Self { context, models: HashMap::new(), closing: false, _ended_on_drop: ended_on_drop }
    }

    fn model(&mut self, name: &str) -> Option<Addr<ModelActor>> {
        if let Some(actor) = self.models.get(name).filter(|actor| actor.connected()) {
            return Some(actor.clone());
        }
        let model: &Model = self.context.config.models.iter().find(|model| model.name == name)?;
        let actor = ModelActor::new(model.clone(), self.context.clone()).start();
        if self.models.insert(name.to_owned(), actor.clone()).is_some() {
            tracing::error!(model = name, "the actor of a model panicked and was replaced");
        }
        Some(actor)
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.context.mailbox_capacity());
    }
}

impl Handler<Complete> for Supervisor {
    type Result = ();

    fn handle(&mut self, complete: Complete, _: &mut Self::Context) {
        if self.closing {
            return complete.writer.fail(Error::ShuttingDown);
        }
        let name = complete.request.model.clone();
        let Some(actor) = self.model(&name) else {
            return complete.writer.fail(self.context.unknown_model(&name));
        };
        match actor.try_send(complete) {
            Ok(()) => {}
            Err(SendError::Full(complete)) => complete.writer.fail(self.context.overloaded()),
            // Dropping the writer fails the request as lost; the next request gets a new actor.
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

impl Handler<GetAllStatus> for Supervisor {
    type Result = ResponseFuture<Vec<ModelStatus>>;

    fn handle(&mut self, GetAllStatus { query_workers }: GetAllStatus, _: &mut Self::Context) -> Self::Result {
        let names: Vec<_> = self.context.config.models.iter().map(|model| model.name.clone()).collect();
        let queries: Vec<_> =
            names.iter().filter_map(|name| self.model(name)).map(|actor| actor.send(GetStatus { query_worker: query_workers })).collect();
        Box::pin(async move { join_all(queries).await.into_iter().flatten().collect() })
    }
}

impl Handler<Close> for Supervisor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Close, _: &mut Self::Context) -> Self::Result {
        self.closing = true;
        let unloads: Vec<_> = self.models.values().map(|actor| actor.send(Unload(Error::ShuttingDown))).collect();
        let ended = async move {
            let ended = join_all(unloads).await.into_iter().flatten();
            // A failed send means that the actor has ended, and its worker with it.
            join_all(ended).await;
        };
        Box::pin(ended.into_actor(self).map(|(), _, ctx| ctx.stop()))
    }
}
