//! The front door.

use super::{
    errand::{Ask, Complete, Reply},
    house::House,
    link::{Launch, launch},
    model::{Load, Loading, ModelActor, Show, Unload},
    supervisor::{Close, Find, LookAtAll, Supervisor},
    transcript::{Reader, Ticket, transcript},
};
use crate::actors::{Answer, Error, ModelInfo, ModelStatus, Question, Request, Result, Status};
use crate::config::{Config, Limits};
use actix::{Actor, Addr, MailboxError, System, dev::SendError};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, TryAcquireError, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// The front door: `Clone + Send`, on its own actor thread, usable from any runtime or none.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    house: Arc<House>,
    started: Instant,
    tickets: Arc<Semaphore>,
    closing: AtomicBool,
    last_id: AtomicU64,
    supervisor: Addr<Supervisor>,
    system: System,
    alive: watch::Receiver<()>,
}

impl Runtime {
    /// Starts the actors' thread. No model is loaded before someone asks for it, and no file of one is looked at.
    pub fn start(config: Config) -> Result<Self> {
        if config.models.is_empty() {
            return Err(Error::Internal("no model is configured".into()));
        }
        let launch = launch(&config);
        let (started, starting) = sync_channel(1);
        let actors = move || {
            let system = System::new();
            let runtime = system.block_on(async { Self::assemble(config, launch) });
            // The last clone, this one included, ends the system.
            let _ = started.send(runtime);
            if let Err(error) = system.run() {
                tracing::error!(%error, "the actors' system failed");
            }
        };
        thread::Builder::new().name("actors".into()).spawn(actors).map_err(|error| Error::Internal(error.to_string()))?;
        starting.recv().map_err(|_| Error::Internal("the actors' thread did not start".into()))
    }

    /// Called on a thread that has an actix system.
    pub(super) fn assemble(config: Config, launch: Launch) -> Self {
        let tickets = Arc::new(Semaphore::new(config.limits.requests_in_flight));
        let house = Arc::new(House { config, launch });
        let (sign, alive) = watch::channel(());
        let inner = Inner {
            supervisor: Supervisor::new(house.clone(), sign).start(),
            house,
            started: Instant::now(),
            tickets,
            closing: AtomicBool::new(false),
            last_id: AtomicU64::new(0),
            system: System::current(),
            alive,
        };
        Self { inner: Arc::new(inner) }
    }

    #[cfg(test)]
    pub(super) async fn actor(&self, model: &str) -> Result<Addr<ModelActor>> {
        self.inner.find(model).await
    }

    pub fn limits(&self) -> &Limits {
        &self.inner.house.config.limits
    }

    /// The name requests mean when they name no model.
    pub fn default_model(&self) -> &str {
        &self.inner.house.config.models.first().expect("start refuses a configuration without models").name
    }

    /// Takes a ticket or answers `Overloaded` at once; loads the model if it must. Everything else that can go wrong is the
    /// transcript's end.
    pub fn complete(&self, request: Request) -> Result<Reader> {
        self.inner.known(&request.model)?;
        let ticket = self.inner.ticket()?;
        let (recorder, reader) = transcript(ticket, &request);
        match self.inner.supervisor.try_send(Complete { id: self.inner.next_id(), request, recorder }) {
            Ok(()) => Ok(reader),
            Err(SendError::Full(_)) => Err(self.inner.house.overloaded()),
            Err(SendError::Closed(_)) => Err(self.inner.supervisor_gone()),
        }
    }

    /// Asks a model's tokenizer; takes a ticket and loads the model as `complete` does.
    pub async fn ask(&self, model: &str, question: Question) -> Result<Answer> {
        let actor = self.inner.find(model).await?;
        let (to, answer) = oneshot::channel();
        let asker = CancellationToken::new();
        let reply = Reply { asker: asker.clone(), to, ticket: self.inner.ticket()? };
        let _leaves = asker.drop_guard();
        let sent = actor.send(Ask { id: self.inner.next_id(), question, reply }).await;
        sent.map_err(|error| self.inner.actor_gone(model, error))?;
        answer.await.unwrap_or_else(|_| Err(self.inner.actor_gone(model, MailboxError::Closed)))
    }

    /// Loads and waits; `progress` hears bytes done and in all. Two loads of one model are one.
    pub async fn load(&self, model: &str, mut progress: impl FnMut(u64, u64) + Send) -> Result<ModelInfo> {
        let actor = self.inner.find(model).await?;
        let loading = actor.send(Load).await.map_err(|error| self.inner.actor_gone(model, error))?;
        let Loading { progress: mut bytes, mut outcome } = loading;
        loop {
            tokio::select! {
                biased;
                Ok(()) = bytes.changed() => {
                    let (done, total) = *bytes.borrow_and_update();
                    progress(done, total);
                }
                outcome = &mut outcome => return outcome.unwrap_or_else(|_| Err(self.inner.actor_gone(model, MailboxError::Closed))),
            }
        }
    }

    /// Ends the model's worker, and with it what it has in hand; when this returns its memory is back.
    pub async fn unload(&self, model: &str) -> Result<()> {
        let actor = self.inner.find(model).await?;
        let done =
            actor.send(Unload(Error::Unloading { model: model.to_owned() })).await.map_err(|error| self.inner.actor_gone(model, error))?;
        // An actor that is gone took its worker with it.
        let _ = done.await;
        Ok(())
    }

    /// What a model is, also when it is not loaded.
    pub async fn show(&self, model: &str) -> Result<ModelInfo> {
        let actor = self.inner.find(model).await?;
        let shown = actor.send(Show).await.map_err(|error| self.inner.actor_gone(model, error))?;
        shown.await.unwrap_or_else(|_| Err(self.inner.actor_gone(model, MailboxError::Closed)))
    }

    /// Asks every decode loop, waiting for each at most a second.
    pub async fn status(&self) -> Status {
        let limit = self.limits().requests_in_flight;
        Status {
            uptime: self.inner.started.elapsed(),
            requests_in_flight: limit.saturating_sub(self.inner.tickets.available_permits()),
            requests_limit: limit,
            models: self.inner.look(true).await,
        }
    }

    /// As `status`, without asking the workers.
    pub async fn models(&self) -> Vec<ModelStatus> {
        self.inner.look(false).await
    }

    /// Refuses new requests, gives those in hand this long, cancels the rest, ends the workers.
    pub async fn shutdown(&self, grace: Duration) {
        self.inner.closing.store(true, Ordering::SeqCst);
        let (done, wait) = oneshot::channel();
        let (tickets, supervisor, system) = (self.inner.tickets.clone(), self.inner.supervisor.clone(), self.inner.system.clone());
        let all = self.limits().requests_in_flight as u32;
        // On the actors' thread, because the caller may have no clock.
        self.inner.system.arbiter().spawn(async move {
            let _ = timeout(grace, tickets.acquire_many(all)).await;
            close(supervisor, &system).await;
            let _ = done.send(());
        });
        // The system may have stopped already, which is as good.
        let _ = wait.await;
    }

    /// Resolves when nothing is supervised any more: after a shutdown, or because the supervisor panicked.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut alive = self.inner.alive.clone();
        async move { while alive.changed().await.is_ok() {} }
    }
}

async fn close(supervisor: Addr<Supervisor>, system: &System) {
    // A supervisor that is gone took the models' actors with it.
    let _ = supervisor.send(Close).await;
    system.stop();
}

impl Inner {
    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn known(&self, name: &str) -> Result<()> {
        let known = self.house.config.models.iter().any(|model| model.name == name);
        if known { Ok(()) } else { Err(self.house.unknown(name)) }
    }

    fn ticket(&self) -> Result<Ticket> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::ShuttingDown);
        }
        match self.tickets.clone().try_acquire_owned() {
            Ok(permit) => Ok(Ticket::new(permit)),
            Err(TryAcquireError::NoPermits) => Err(self.house.overloaded()),
            Err(TryAcquireError::Closed) => Err(Error::ShuttingDown),
        }
    }

    async fn find(&self, model: &str) -> Result<Addr<ModelActor>> {
        self.known(model)?;
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::ShuttingDown);
        }
        let found = self.supervisor.send(Find(model.to_owned())).await.map_err(|_| self.supervisor_gone())?;
        found.ok_or(Error::ShuttingDown)
    }

    async fn look(&self, decoder: bool) -> Vec<ModelStatus> {
        self.supervisor.send(LookAtAll { decoder }).await.unwrap_or_default()
    }

    fn actor_gone(&self, model: &str, error: MailboxError) -> Error {
        let lost = || Error::WorkerLost { model: model.to_owned(), cause: format!("its supervision did not answer: {error}") };
        if self.closing.load(Ordering::SeqCst) { Error::ShuttingDown } else { lost() }
    }

    fn supervisor_gone(&self) -> Error {
        if self.closing.load(Ordering::SeqCst) { Error::ShuttingDown } else { Error::Internal("the supervisor is gone".into()) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let (supervisor, system) = (self.supervisor.clone(), self.system.clone());
        // On the actors' thread, which this may not be; after a shutdown it has ended.
        self.system.arbiter().spawn(async move { close(supervisor, &system).await });
    }
}
