//! The requests and questions of one session: decides which may be sent now, and which are replayed after a worker's death.
//!
//! A session runs one worker, from its start to its end. A request is a completion. A question (`tokenize`, `detokenize`, `render`)
//! is answered by one message, so it has nothing to replay.
//!
//! A request is `Queued` until it is `Sent`. Requests that were sent when a worker died are `Suspect`: the next session replays them
//! one at a time, oldest first, and sends nothing else until each of them has ended or is one token past its recorded position.
//! Requests past that position keep running. If the worker dies during a replay while such requests run, any of them may be the
//! cause: the request in replay is `Quarantined`, so the next session replays it first and alone, and the others are suspects
//! again. If the worker dies while the request in replay is the only one that was sent, the request fails.

use super::{
    command::{ActiveRequest, ActiveRequests, Ask, Command, Complete, CountedRequest, ExitReason, ReplayState, Reply},
    link::Link,
};
use crate::actors::{Answer, End, Error, FinishReason, Question, Result, Step, ToWorker, Usage};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::collections::BTreeMap;

pub(super) struct InFlight {
    model: String,
    requests: ActiveRequests,
    questions: BTreeMap<u64, PendingQuestion>,
    replay: Option<ReplayTurn>,
    /// Each yields the id of a request or question when its caller is gone or, for a request, when it has ended.
    abandoned: FuturesUnordered<BoxFuture<'static, u64>>,
}

struct PendingQuestion {
    question: Question,
    sent: bool,
    reply: Reply,
}

/// The request that is being replayed.
struct ReplayTurn {
    id: u64,
    /// Tokens it had when its worker died.
    recorded_tokens: usize,
}

impl InFlight {
    pub(super) fn new(model: String, requests: ActiveRequests) -> Self {
        let new = Self { model, requests, questions: BTreeMap::new(), replay: None, abandoned: FuturesUnordered::new() };
        new.requests.iter().for_each(|(&id, active)| new.watch(id, active.writer.abandoned()));
        new
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.questions.is_empty()
    }

    pub(super) fn add_request(&mut self, Complete { id, request, writer }: Complete, counted: CountedRequest) {
        self.watch(id, writer.abandoned());
        self.requests.insert(id, ActiveRequest { request, writer, state: ReplayState::Queued, _counted: counted });
    }

    pub(super) fn add_question(&mut self, Ask { id, question, reply }: Ask) {
        self.watch(id, reply.caller_gone.clone().cancelled_owned());
        self.questions.insert(id, PendingQuestion { question, sent: false, reply });
    }

    /// Waits for the id of the next request or question whose caller is gone. The request may have ended meanwhile. `None` if nothing
    /// is watched.
    pub(super) async fn next_abandoned(&mut self) -> Option<u64> {
        self.abandoned.next().await
    }

    /// Sends all work that may be sent now. The worker must be ready.
    pub(super) fn send(&mut self, link: &mut Link) {
        if self.replay.is_some() {
            return;
        }
        let first = |state| self.requests.iter().find(move |(_, active)| active.state == state);
        if let Some((&id, active)) = first(ReplayState::Quarantined).or_else(|| first(ReplayState::Suspect)) {
            self.replay = Some(ReplayTurn { id, recorded_tokens: active.writer.tokens() });
            return self.generate(id, link);
        }
        let queued = self.requests.iter().filter(|(_, active)| active.state == ReplayState::Queued);
        for id in queued.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.generate(id, link);
        }
        let unsent = self.questions.iter_mut().filter(|(_, pending)| !pending.sent);
        let unsent = unsent.map(|(&id, pending)| {
            pending.sent = true;
            (id, pending.question.clone())
        });
        for (id, question) in unsent.collect::<Vec<_>>() {
            if let Err(error) = link.post(ToWorker::Ask { id, question }) {
                self.answer(id, Err(Error::Internal(error.to_string())));
            }
        }
    }

    pub(super) fn answer(&mut self, id: u64, answer: Result<Answer>) {
        if let Some(pending) = self.questions.remove(&id) {
            pending.reply.send(answer);
        }
    }

    /// Appends the tokens of a step to the request's transcript. When that completes a replay, sends the next work. Fails if the worker
    /// generated more tokens than were requested, which is a bug in it.
    pub(super) fn record(&mut self, id: u64, step: Step, link: &mut Link) -> std::result::Result<(), String> {
        // The request may have ended already.
        let Some(active) = self.requests.get_mut(&id) else { return Ok(()) };
        let (tokens, tokens_max) = (active.writer.tokens() + step.tokens.len(), active.request.tokens_max);
        if tokens > tokens_max as usize {
            return Err(format!("it generated {tokens} tokens where {tokens_max} were requested"));
        }
        active.writer.record(step);
        if self.replay.take_if(|replay| replay.id == id && replay.recorded_tokens < tokens).is_some() {
            self.send(link);
        }
        Ok(())
    }

    pub(super) fn end(&mut self, id: u64, end: End, link: &mut Link) {
        // A second end of one request is ignored.
        let Some(active) = self.requests.remove(&id) else { return };
        active.writer.end(end);
        if self.replay.take_if(|replay| replay.id == id).is_some() {
            self.send(link);
        }
    }

    /// Ends a request or question as lost, without a replay.
    pub(super) fn fail_lost(&mut self, id: u64, cause: &str) {
        let error = lost(&self.model, cause);
        match self.requests.remove(&id) {
            Some(active) => active.writer.fail(error),
            None => self.answer(id, Err(error)),
        }
    }

    /// Fails the requests that have tokens already. The files now contain another model, which can't continue them.
    pub(super) fn fail_started(&mut self, cause: &str) {
        let started = self.requests.iter().filter(|(_, active)| active.writer.tokens() > 0);
        started.map(|(&id, _)| id).collect::<Vec<_>>().into_iter().for_each(|id| self.fail_lost(id, cause));
    }

    /// Cancels a request or question whose caller is gone. A request that was sent ends when the worker acknowledges the cancel; the
    /// others end here.
    pub(super) fn cancel(&mut self, id: u64, link: Option<&mut Link>) {
        match (self.requests.get(&id).map(|active| active.state), link) {
            (Some(ReplayState::Sent), Some(link)) => {
                // `post` fails only for a message larger than a frame, and a cancel is small.
                let _ = link.post(ToWorker::Cancel { id });
            }
            (Some(ReplayState::Sent | ReplayState::Queued | ReplayState::Suspect | ReplayState::Quarantined), _) => {
                self.requests.remove(&id).into_iter().for_each(end_cancelled);
            }
            (None, _) => drop(self.questions.remove(&id)),
        }
    }

    /// Returns the work that the next session takes over: requests, then questions as commands. After a death, requests whose caller is
    /// gone end as cancelled. A request in replay fails if it was the only one sent, and so do the questions that were sent.
    pub(super) fn into_unfinished(mut self, reason: &ExitReason) -> (ActiveRequests, Vec<Command>) {
        let mut requests = ActiveRequests::new();
        let sent = self.requests.values().filter(|active| active.state == ReplayState::Sent).count();
        for (id, mut active) in self.requests {
            let in_replay = self.replay.take_if(|replay| replay.id == id).is_some();
            match reason {
                ExitReason::Died(_) if active.writer.is_abandoned() => end_cancelled(active),
                ExitReason::Died(cause) if in_replay && sent == 1 => active.writer.fail(lost(&self.model, cause)),
                ExitReason::Died(_) | ExitReason::LoadFailed(_) | ExitReason::Idle | ExitReason::CommandsClosed => {
                    active.state = match active.state {
                        ReplayState::Sent if in_replay => ReplayState::Quarantined,
                        ReplayState::Sent => ReplayState::Suspect,
                        state @ (ReplayState::Queued | ReplayState::Suspect | ReplayState::Quarantined) => state,
                    };
                    requests.insert(id, active);
                }
            }
        }
        let mut remaining_questions = Vec::new();
        for (id, PendingQuestion { question, sent, reply }) in self.questions {
            match reason {
                ExitReason::Died(cause) if sent => reply.send(Err(lost(&self.model, cause))),
                ExitReason::Died(_) | ExitReason::LoadFailed(_) | ExitReason::Idle | ExitReason::CommandsClosed => {
                    remaining_questions.push(Command::Ask(Ask { id, question, reply }));
                }
            }
        }
        (requests, remaining_questions)
    }

    fn watch(&self, id: u64, abandoned: impl Future<Output = ()> + Send + 'static) {
        self.abandoned.push(Box::pin(async move {
            abandoned.await;
            id
        }));
    }

    fn generate(&mut self, id: u64, link: &mut Link) {
        let Some(active) = self.requests.get_mut(&id) else { return };
        active.state = ReplayState::Sent;
        let generate = ToWorker::Generate { id, request: active.request.clone(), replay: active.writer.replay() };
        if let Err(error) = link.post(generate) {
            self.end(id, End::Failed(Error::Internal(error.to_string())), link);
        }
    }
}

fn end_cancelled(active: ActiveRequest) {
    let usage = Usage { completion_tokens: active.writer.tokens() as u32, ..Usage::default() };
    active.writer.end(End::Done { reason: FinishReason::Cancelled, usage, applied: active.request.sampling });
}

fn lost(model: &str, cause: &str) -> Error {
    Error::WorkerLost { model: model.to_owned(), cause: cause.to_owned() }
}
