//! A worker session: one task that owns the link to one worker process and the requests sent to it.
//!
//! When the link ends, the session returns all unfinished work to its ModelActor.

use super::{
    command::{ActiveRequests, Command, ExitReason, WorkerEnded, WorkerEvent},
    context::RuntimeContext,
    in_flight::InFlight,
    link::{Link, Shutdown},
    restart_policy::{Decision, RestartPolicy},
};
use crate::actors::{DecoderStatus, End, Error, FromWorker, ModelInfo, PrompterActivity, ToWorker, WIRE_VERSION, frame};
use crate::config::Model;
use std::{collections::HashMap, future::pending, ops::ControlFlow, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// Pings to a busy decoder within the silence limit.
const PINGS_PER_SILENCE_LIMIT: u32 = 6;

/// A timer that fires this late means that this process itself was suspended, so the silence is not the worker's.
const SUSPENDED_AFTER: Duration = Duration::from_secs(1);

pub(super) struct SessionSpec {
    pub(super) id: u64,
    pub(super) model: Model,
    pub(super) context: Arc<RuntimeContext>,
    /// Restart back-off: the worker starts after this delay. A cancel during the delay takes effect immediately.
    pub(super) delay: Duration,
    /// The model as the previous sessions loaded it.
    pub(super) model_info: Option<ModelInfo>,
}

/// Runs one worker from its start to its end. `replay` are the unfinished requests of the previous session.
pub(super) async fn run_session(
    spec: SessionSpec,
    replay: ActiveRequests,
    mut commands: mpsc::Receiver<Command>,
    notify: impl Fn(WorkerEvent),
) -> WorkerEnded {
    let mut session = WorkerSession::new(spec, replay, notify);
    // Without a delay, start now: a timer would add its resolution of 1 ms to the first token.
    let mut next = if session.spec.delay.is_zero() { session.launch() } else { Next::Continue(()) };
    let exit = loop {
        if let Next::Break(exit) = next {
            break exit;
        }
        let deadline = session.next_timer();
        next = tokio::select! {
            received = receive(&mut session.link) => session.on_message(received),
            command = commands.recv() => session.on_command(command),
            Some(id) = session.in_flight.next_abandoned() => session.cancel(id),
            deadline = timer(deadline) => session.on_timer(deadline),
        };
    };
    let reason = close(session.link, exit).await;
    let (requests, mut unsent) = session.in_flight.into_unfinished(&reason);
    commands.close();
    while let Ok(command) = commands.try_recv() {
        // A ping must not start another worker.
        if !matches!(command, Command::Ping(_)) {
            unsent.push(command);
        }
    }
    WorkerEnded { session: session.spec.id, requests, unsent, reason }
}

async fn receive(link: &mut Option<Link>) -> Result<Option<FromWorker>, frame::Error> {
    match link {
        Some(link) => link.receive().await,
        None => pending().await,
    }
}

/// Resolves at the deadline, and returns it.
async fn timer(deadline: Option<Instant>) -> Instant {
    match deadline {
        Some(deadline) => {
            sleep_until(deadline).await;
            deadline
        }
        None => pending().await,
    }
}

async fn close(link: Option<Link>, exit: LoopExit) -> ExitReason {
    let (shutdown, reason) = match exit {
        LoopExit::LinkClosed => (Shutdown::Graceful, None),
        LoopExit::Close(reason @ (ExitReason::Idle | ExitReason::CommandsClosed)) => (Shutdown::Immediate, Some(reason)),
        LoopExit::Close(reason) => (Shutdown::Graceful, Some(reason)),
        LoopExit::Kill(cause) => (Shutdown::Kill, Some(ExitReason::Died(cause))),
    };
    let status = match link {
        Some(link) => link.end(shutdown).await,
        None => String::new(),
    };
    reason.unwrap_or(ExitReason::Died(status))
}

/// Why the loop ended, which decides how the worker is shut down.
enum LoopExit {
    /// The worker closed the link; its exit status becomes the reason.
    LinkClosed,
    Close(ExitReason),
    /// The worker can't be trusted to end by itself.
    Kill(String),
}

type Next = ControlFlow<LoopExit>;

struct WorkerSession<F> {
    spec: SessionSpec,
    notify: F,
    start: Instant,
    /// `None` during the restart delay.
    link: Option<Link>,
    hello_received: bool,
    ready: bool,
    in_flight: InFlight,
    /// Limits how often the stages of this worker may panic.
    panics: RestartPolicy,
    pings: HashMap<u64, oneshot::Sender<DecoderStatus>>,
    pings_sent: u64,
    /// The decoder's last message, or when the decoder got work after being idle.
    last_activity: Instant,
    ping_at: Instant,
    idle_since: Instant,
}

impl<F: Fn(WorkerEvent)> WorkerSession<F> {
    fn new(spec: SessionSpec, replay: ActiveRequests, notify: F) -> Self {
        let now = Instant::now();
        Self {
            start: now + spec.delay,
            in_flight: InFlight::new(spec.model.name.clone(), replay),
            panics: RestartPolicy::new(spec.context.config.restarts),
            spec,
            notify,
            link: None,
            hello_received: false,
            ready: false,
            pings: HashMap::new(),
            pings_sent: 0,
            last_activity: now,
            ping_at: now,
            idle_since: now,
        }
    }

    fn has_work(&self) -> bool {
        !self.ready || !self.in_flight.is_empty() || !self.pings.is_empty()
    }

    fn silence_deadline(&self) -> Instant {
        self.last_activity + self.spec.context.config.limits.decoder_silence
    }

    fn next_ping(&self) -> Instant {
        let limits = &self.spec.context.config.limits;
        Instant::now() + limits.prompter_time.min(limits.decoder_silence / PINGS_PER_SILENCE_LIMIT)
    }

    /// An idle session without a keep-alive has no timer.
    fn next_timer(&self) -> Option<Instant> {
        if self.link.is_none() {
            Some(self.start)
        } else if !self.ready {
            Some(self.silence_deadline())
        } else if self.has_work() {
            Some(self.silence_deadline().min(self.ping_at))
        } else {
            self.spec.context.config.keep_alive.map(|keep_alive| self.idle_since + keep_alive)
        }
    }

    fn on_timer(&mut self, deadline: Instant) -> Next {
        if self.link.is_none() {
            return self.launch();
        }
        if !self.has_work() {
            return Next::Break(LoopExit::Close(ExitReason::Idle));
        }
        if deadline.elapsed() >= SUSPENDED_AFTER {
            self.last_activity = Instant::now();
        }
        if Instant::now() >= self.silence_deadline() {
            let silence = self.spec.context.config.limits.decoder_silence.as_secs();
            return Next::Break(LoopExit::Kill(format!("its decoder did not respond for {silence} s")));
        }
        if self.ready {
            self.ping();
        }
        Next::Continue(())
    }

    fn launch(&mut self) -> Next {
        match (self.spec.context.launch)(&self.spec.model.name) {
            Ok(link) => {
                (self.notify)(WorkerEvent::Started { pid: link.pid() });
                self.link = Some(link);
                self.last_activity = Instant::now();
                Next::Continue(())
            }
            Err(error) => Next::Break(LoopExit::Close(ExitReason::Died(format!("could not be started: {error}")))),
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

    fn on_command(&mut self, command: Option<Command>) -> Next {
        let Some(command) = command else { return Next::Break(LoopExit::Close(ExitReason::CommandsClosed)) };
        if !self.has_work() {
            self.last_activity = Instant::now();
            self.ping_at = self.next_ping();
        }
        match command {
            Command::Complete(complete, counted) => self.in_flight.add_request(complete, counted),
            Command::Ask(ask) => self.in_flight.add_question(ask),
            Command::Ping(reply) if self.ready => {
                self.pings.retain(|_, reply| !reply.is_closed());
                let id = self.ping();
                self.pings.insert(id, reply);
            }
            Command::Ping(_) => {}
        }
        self.send();
        Next::Continue(())
    }

    fn send(&mut self) {
        if let (true, Some(link)) = (self.ready, &mut self.link) {
            self.in_flight.send(link);
        }
    }

    fn cancel(&mut self, id: u64) -> Next {
        self.in_flight.cancel(id, self.link.as_mut());
        self.idle_since = Instant::now();
        Next::Continue(())
    }

    fn on_message(&mut self, received: Result<Option<FromWorker>, frame::Error>) -> Next {
        let message = match received {
            Ok(Some(message)) => message,
            Ok(None) | Err(frame::Error::Io(_)) => return Next::Break(LoopExit::LinkClosed),
            Err(error) => return Next::Break(LoopExit::Kill(format!("it sent an invalid frame: {error}"))),
        };
        // The prompter sends these two as well, so they don't prove that the decoder runs.
        if !matches!(message, FromWorker::Answer { .. } | FromWorker::End { .. }) {
            self.last_activity = Instant::now();
            (self.notify)(WorkerEvent::Activity(self.last_activity));
        }
        let Some(link) = &mut self.link else { return Next::Continue(()) };
        match message {
            FromWorker::Hello { version: WIRE_VERSION } => {
                self.hello_received = true;
                let load = ToWorker::Load { source: self.spec.model.source.clone(), settings: self.spec.context.config.settings.clone() };
                if let Err(error) = link.post(load) {
                    return Next::Break(LoopExit::Close(ExitReason::LoadFailed(Error::Internal(error.to_string()))));
                }
            }
            FromWorker::Hello { version } => {
                return Next::Break(LoopExit::Close(ExitReason::LoadFailed(version_mismatch(version))));
            }
            FromWorker::Broken { cause } => return Next::Break(LoopExit::Close(ExitReason::Died(cause))),
            _ if !self.hello_received => return Next::Break(LoopExit::Kill("it sent a message before its hello".into())),
            FromWorker::Loading { done, total } => {
                (self.notify)(WorkerEvent::Loading { done, total });
            }
            FromWorker::Loaded(Ok(model_info)) => {
                self.ready = true;
                self.ping_at = self.next_ping();
                self.idle_since = self.last_activity;
                if self.spec.model_info.as_ref().is_some_and(|before| *before != model_info) {
                    self.in_flight.fail_started("its files now contain another model");
                }
                (self.notify)(WorkerEvent::Ready(model_info));
                self.send();
            }
            FromWorker::Loaded(Err(error)) => return Next::Break(LoopExit::Close(ExitReason::LoadFailed(error))),
            FromWorker::Step { id, step } => {
                if let Err(violation) = self.in_flight.record(id, step, link) {
                    return Next::Break(LoopExit::Kill(violation));
                }
            }
            FromWorker::End { id, end } => {
                self.idle_since = Instant::now();
                let panicked = if let End::Failed(error) = &end { panicked_stage(error) } else { None };
                self.in_flight.end(id, end, link);
                return self.count_panic(panicked);
            }
            FromWorker::Answer { id, answer } => {
                self.idle_since = Instant::now();
                let panicked = answer.as_ref().err().and_then(panicked_stage);
                self.in_flight.answer(id, answer);
                return self.count_panic(panicked);
            }
            FromWorker::Pong { id, status } => {
                let limit = self.spec.context.config.limits.prompter_time;
                if let Some(PrompterActivity { id, .. }) = status.prompter.filter(|activity| activity.elapsed > limit) {
                    let cause = format!("its prompter spent more than {} s on one request", limit.as_secs());
                    // This request is known to be the cause, so it is not replayed.
                    self.in_flight.fail_lost(id, &cause);
                    return Next::Break(LoopExit::Kill(cause));
                }
                if let Some(reply) = self.pings.remove(&id) {
                    // Fails when the caller stopped waiting.
                    let _ = reply.send(status);
                }
            }
        }
        Next::Continue(())
    }

    /// Ends the worker when its stages panic more often than a worker may die.
    fn count_panic(&mut self, stage: Option<String>) -> Next {
        match stage.map(|stage| (self.panics.on_death(Instant::now(), true), stage)) {
            Some((Decision::GiveUp, stage)) => Next::Break(LoopExit::Close(ExitReason::Died(format!("its {stage} panicked too often")))),
            Some((Decision::RestartAfter(_), _)) | None => Next::Continue(()),
        }
    }
}

/// The stage whose panic ended a request or question.
fn panicked_stage(error: &Error) -> Option<String> {
    if let Error::StagePanicked { stage, .. } = error { Some(stage.clone()) } else { None }
}

pub(super) fn version_mismatch(version: u32) -> Error {
    Error::Internal(format!("the worker has wire version {version} and this process {WIRE_VERSION}; they are different builds"))
}
