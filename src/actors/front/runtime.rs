//! `Runtime`, the handle to all models: starts the actors, limits the requests in flight, and passes requests to the supervisor or to
//! a model's actor.

use super::{
    command::{Ask, Complete, Reply},
    context::RuntimeContext,
    link::{WorkerLauncher, worker_launcher},
    model::{
        ModelActor,
        queries::{Load, PendingLoad, Show, Unload},
    },
    supervisor::{Close, Find, GetAllStatus, Supervisor},
    transcript::{Reader, RequestPermit, transcript},
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

/// Handle to all configured models. The actors run on a thread of their own, so it works from any async runtime, or from none.
///
/// Clones share one set of workers; dropping the last clone ends them.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<RuntimeContext>,
    started: Instant,
    permits: Arc<Semaphore>,
    closing: AtomicBool,
    last_id: AtomicU64,
    supervisor: Addr<Supervisor>,
    system: System,
    /// Never changes; closed when the supervisor has ended.
    supervisor_ended: watch::Receiver<()>,
}

impl Runtime {
    /// Starts the actors' thread. Model files are opened only when a request, `load` or `show` needs them.
    ///
    /// # Errors
    ///
    /// `Internal` if the operating system refuses another thread, or if that thread panics.
    pub fn start(config: Config) -> Result<Self> {
        let launch = worker_launcher(&config);
        let (sender, receiver) = sync_channel(1);
        let actors = move || {
            let system = System::new();
            let runtime = system.block_on(async { Self::assemble(config, launch) });
            // If the receiver is gone, this drops the runtime, which stops the system.
            let _ = sender.send(runtime);
            if let Err(error) = system.run() {
                tracing::error!(%error, "the actor system failed");
            }
        };
        thread::Builder::new().name("actors".into()).spawn(actors).map_err(|error| Error::Internal(error.to_string()))?;
        receiver.recv().map_err(|_| Error::Internal("the actor thread did not start".into()))
    }

    /// Must be called on a thread with an actix system.
    pub(super) fn assemble(config: Config, launch: WorkerLauncher) -> Self {
        let permits = Arc::new(Semaphore::new(config.limits.requests_in_flight));
        let context = Arc::new(RuntimeContext { config, launch });
        let (ended_on_drop, supervisor_ended) = watch::channel(());
        let inner = Inner {
            supervisor: Supervisor::new(context.clone(), ended_on_drop).start(),
            context,
            started: Instant::now(),
            permits,
            closing: AtomicBool::new(false),
            last_id: AtomicU64::new(0),
            system: System::current(),
            supervisor_ended,
        };
        Self { inner: Arc::new(inner) }
    }

    #[cfg(test)]
    pub(super) async fn actor(&self, model: &str) -> Result<Addr<ModelActor>> {
        self.inner.find(model).await
    }

    pub fn limits(&self) -> &Limits {
        &self.inner.context.config.limits
    }

    /// The model of requests that don't name one: the first that is configured.
    pub fn default_model(&self) -> &str {
        &self.inner.context.config.models.first().expect("`Config::new` refuses an empty list").name
    }

    /// Starts a completion and returns its transcript. Loads the model if necessary. Later failures are reported as the
    /// transcript's `End::Failed`.
    ///
    /// # Errors
    ///
    /// `UnknownModel`, `ShuttingDown`, `Overloaded` if `Limits::requests_in_flight` are running or the supervisor's mailbox is full,
    /// `Internal` if the supervisor has panicked.
    pub fn complete(&self, request: Request) -> Result<Reader> {
        self.inner.check_known(&request.model)?;
        let permit = self.inner.permit()?;
        let (writer, reader) = transcript(permit, &request);
        match self.inner.supervisor.try_send(Complete { id: self.inner.next_id(), request, writer }) {
            Ok(()) => Ok(reader),
            Err(SendError::Full(_)) => Err(self.inner.context.overloaded()),
            Err(SendError::Closed(_)) => Err(self.inner.supervisor_error()),
        }
    }

    /// Tokenizes or detokenizes a text, or renders a prompt in the model's prompt format. Counts as a request in flight and loads the
    /// model, as `complete` does.
    ///
    /// # Errors
    ///
    /// Those of `complete` and `load`, `Unloading`, `WorkerLost` if the worker ends before it has answered, `StagePanicked`, and
    /// `Model` with an error of the tokenizer or the template.
    pub async fn ask(&self, model: &str, question: Question) -> Result<Answer> {
        let actor = self.inner.find(model).await?;
        let (sender, answer) = oneshot::channel();
        let caller_gone = CancellationToken::new();
        let reply = Reply { caller_gone: caller_gone.clone(), sender, permit: self.inner.permit()? };
        let _cancel_on_drop = caller_gone.drop_guard();
        let sent = actor.send(Ask { id: self.inner.next_id(), question, reply }).await;
        sent.map_err(|error| self.inner.actor_error(model, error))?;
        answer.await.unwrap_or_else(|_| Err(self.inner.actor_error(model, MailboxError::Closed)))
    }

    /// Loads a model, also one that has failed, and returns when it is ready. Concurrent loads of one model share one worker.
    /// `progress` receives the bytes of weights loaded so far and in total.
    ///
    /// # Errors
    ///
    /// `UnknownModel`, `ShuttingDown`, `Model` if the files can't be loaded, `ModelFailed` after repeated deaths of the worker,
    /// `Unloading` during an unload, `WorkerLost` if the model's actor panics, `Internal` if the worker is of another build or the
    /// supervisor has panicked.
    pub async fn load(&self, model: &str, mut progress: impl FnMut(u64, u64) + Send) -> Result<ModelInfo> {
        let actor = self.inner.find(model).await?;
        let load = actor.send(Load).await.map_err(|error| self.inner.actor_error(model, error))?;
        let PendingLoad { progress: mut bytes, mut outcome } = load;
        loop {
            tokio::select! {
                biased;
                Ok(()) = bytes.changed() => {
                    let (done, total) = *bytes.borrow_and_update();
                    progress(done, total);
                }
                outcome = &mut outcome => return outcome.unwrap_or_else(|_| Err(self.inner.actor_error(model, MailboxError::Closed))),
            }
        }
    }

    /// Ends a model's worker and fails its requests with `Unloading`. Returns when the worker's memory is free.
    ///
    /// # Errors
    ///
    /// `UnknownModel`, `ShuttingDown`, `WorkerLost` if the model's actor has panicked, `Internal` if the supervisor has.
    pub async fn unload(&self, model: &str) -> Result<()> {
        let actor = self.inner.find(model).await?;
        let done =
            actor.send(Unload(Error::Unloading { model: model.to_owned() })).await.map_err(|error| self.inner.actor_error(model, error))?;
        // The sender is dropped when the worker has ended; it never sends.
        let _ = done.await;
        Ok(())
    }

    /// Describes a model. Waits for a load that has begun. For a model that is not loaded, a short-lived worker reads the headers of
    /// its files.
    ///
    /// # Errors
    ///
    /// Those of `load`, and `WorkerLost` if the short-lived worker ends or does not answer in time.
    pub async fn show(&self, model: &str) -> Result<ModelInfo> {
        let actor = self.inner.find(model).await?;
        let shown = actor.send(Show).await.map_err(|error| self.inner.actor_error(model, error))?;
        shown.await.unwrap_or_else(|_| Err(self.inner.actor_error(model, MailboxError::Closed)))
    }

    /// State of all models. Queries the decode loop of each worker, and waits at most one second for its reply.
    pub async fn status(&self) -> Status {
        let limit = self.limits().requests_in_flight;
        Status {
            uptime: self.inner.started.elapsed(),
            requests_in_flight: limit.saturating_sub(self.inner.permits.available_permits()),
            requests_limit: limit,
            models: self.inner.statuses(true).await,
        }
    }

    /// State of all models, without querying the workers.
    pub async fn models(&self) -> Vec<ModelStatus> {
        self.inner.statuses(false).await
    }

    /// Refuses new requests, waits up to `grace` for those in flight, cancels the rest, and ends the workers.
    pub async fn shutdown(&self, grace: Duration) {
        self.inner.closing.store(true, Ordering::SeqCst);
        let (done, wait) = oneshot::channel();
        let (permits, supervisor, system) = (self.inner.permits.clone(), self.inner.supervisor.clone(), self.inner.system.clone());
        let all = self.limits().requests_in_flight as u32;
        // On the actors' thread, because the caller's runtime may have no timer.
        self.inner.system.arbiter().spawn(async move {
            let _ = timeout(grace, permits.acquire_many(all)).await;
            close(supervisor, &system).await;
            let _ = done.send(());
        });
        // Fails if the system has stopped already.
        let _ = wait.await;
    }

    /// Resolves when the supervisor has ended: after a shutdown, or because it panicked.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut supervisor_ended = self.inner.supervisor_ended.clone();
        async move { while supervisor_ended.changed().await.is_ok() {} }
    }
}

async fn close(supervisor: Addr<Supervisor>, system: &System) {
    // Fails if the supervisor has ended, and then the models' actors have too.
    let _ = supervisor.send(Close).await;
    system.stop();
}

impl Inner {
    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn check_known(&self, name: &str) -> Result<()> {
        let known = self.context.config.models.iter().any(|model| model.name == name);
        if known { Ok(()) } else { Err(self.context.unknown_model(name)) }
    }

    fn permit(&self) -> Result<RequestPermit> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::ShuttingDown);
        }
        match self.permits.clone().try_acquire_owned() {
            Ok(permit) => Ok(RequestPermit::new(permit)),
            Err(TryAcquireError::NoPermits) => Err(self.context.overloaded()),
            Err(TryAcquireError::Closed) => Err(Error::ShuttingDown),
        }
    }

    async fn find(&self, model: &str) -> Result<Addr<ModelActor>> {
        self.check_known(model)?;
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::ShuttingDown);
        }
        let found = self.supervisor.send(Find(model.to_owned())).await.map_err(|_| self.supervisor_error())?;
        found.ok_or(Error::ShuttingDown)
    }

    async fn statuses(&self, query_workers: bool) -> Vec<ModelStatus> {
        self.supervisor.send(GetAllStatus { query_workers }).await.unwrap_or_default()
    }

    fn actor_error(&self, model: &str, error: MailboxError) -> Error {
        if self.closing.load(Ordering::SeqCst) {
            return Error::ShuttingDown;
        }
        // Otherwise the actor has panicked, which ends its session and its worker.
        Error::WorkerLost { model: model.to_owned(), cause: format!("its actor did not answer: {error}") }
    }

    fn supervisor_error(&self) -> Error {
        if self.closing.load(Ordering::SeqCst) { Error::ShuttingDown } else { Error::Internal("the supervisor has ended".into()) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let (supervisor, system) = (self.supervisor.clone(), self.system.clone());
        // Spawned on the actors' thread, because this thread may have no async runtime. After a shutdown that thread has ended, and
        // `spawn` does nothing.
        self.system.arbiter().spawn(async move { close(supervisor, &system).await });
    }
}
