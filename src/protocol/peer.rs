//! What one peer has asked and not yet heard: its calls, their ids, and what each message starts.

use super::{
    api::Api,
    call::{Call, Handle},
    connection::{Closed, Malformed},
    envelope::{self, CallId, Incoming, Message, Params},
    error::{Fault, Kind},
    lifecycle::Lifecycle,
    respond,
    types::{CancelParams, read},
};
use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use std::{collections::HashMap, ops::ControlFlow, panic::AssertUnwindSafe};
use tokio::sync::mpsc;

/// A call under way: which id it answers, and its answer's text.
type Running = (CallId, BoxFuture<'static, String>);

enum Work {
    Nothing,
    Answered(String),
    Running(Running),
}

pub(super) struct Peer<'a> {
    api: &'a Api,
    pub(super) sender: mpsc::Sender<String>,
    calls: HashMap<CallId, Handle>,
    pub(super) running: FuturesUnordered<BoxFuture<'static, Vec<CallId>>>,
    /// What was answered on the spot; nothing more is read until it is taken.
    pub(super) reply: Option<String>,
    pub(super) lifecycle: Lifecycle,
    /// Calls so far: the registry's ids.
    served: u64,
}

impl<'a> Peer<'a> {
    pub(super) fn new(api: &'a Api, sender: mpsc::Sender<String>) -> Self {
        Self {
            api,
            sender,
            calls: HashMap::new(),
            running: FuturesUnordered::new(),
            reply: None,
            lifecycle: Lifecycle::default(),
            served: 0,
        }
    }

    pub(super) fn forget(&mut self, ended: Vec<CallId>) {
        for id in ended {
            self.calls.remove(&id);
        }
    }

    pub(super) fn hurry_all(&self) {
        self.calls.values().for_each(Handle::hurry);
    }

    pub(super) fn cancel_all(&self) {
        self.calls.values().for_each(Handle::cancel);
    }

    pub(super) fn take(&mut self, message: Result<String, Malformed>) -> ControlFlow<Closed> {
        let text = match message {
            Ok(text) => text,
            Err(malformed) => return self.refuse_malformed(&malformed),
        };
        match envelope::read(&text, self.api.limits().batch) {
            Err(fault) => self.reply = Some(respond::failure(None, fault)),
            Ok(Message::One(incoming)) => match self.dispatch(incoming)? {
                Work::Nothing => {}
                Work::Answered(text) => self.reply = Some(text),
                Work::Running((id, answer)) => self.run(vec![id], answer),
            },
            Ok(Message::Batch(_)) if self.lifecycle.is_lsp() => {
                let fault = Fault::new(Kind::BatchNotAllowed, "LSP has no batches");
                self.reply = Some(respond::failure(None, fault));
            }
            Ok(Message::Batch(members)) => self.batch(members)?,
        }
        ControlFlow::Continue(())
    }

    /// Members run side by side and are answered in one array, in their order.
    fn batch(&mut self, members: Vec<Incoming>) -> ControlFlow<Closed> {
        let (mut ids, mut answers) = (Vec::new(), Vec::new());
        for member in members {
            match self.dispatch(member)? {
                Work::Nothing => {}
                Work::Answered(text) => answers.push(std::future::ready(text).boxed()),
                Work::Running((id, answer)) => {
                    ids.push(id);
                    answers.push(answer);
                }
            }
        }
        if ids.is_empty() && !answers.is_empty() {
            let texts: Vec<_> = answers.into_iter().filter_map(FutureExt::now_or_never).collect();
            self.reply = Some(format!("[{}]", texts.join(",")));
        } else if !answers.is_empty() {
            self.run(ids, async move { format!("[{}]", join_all(answers).await.join(",")) }.boxed());
        }
        ControlFlow::Continue(())
    }

    /// The ids stay taken until their answer has room in the outbox, and so do their places among the calls.
    fn run(&mut self, ids: Vec<CallId>, answer: BoxFuture<'static, String>) {
        let outbox = self.sender.clone();
        self.running.push(
            async move {
                let text = answer.await;
                let _ = outbox.send(text).await;
                ids
            }
            .boxed(),
        );
    }

    fn dispatch(&mut self, incoming: Incoming) -> ControlFlow<Closed, Work> {
        match incoming {
            Incoming::Invalid { id, fault } => {
                // An id that a running call holds would be taken for that call's answer.
                let id = id.filter(|id| !self.calls.contains_key(id));
                ControlFlow::Continue(Work::Answered(respond::failure(id.as_ref(), fault)))
            }
            Incoming::Notification { method, params } => self.notification(&method, params),
            Incoming::Request { id, method, params } => {
                if self.calls.contains_key(&id) {
                    let fault = Fault::new(Kind::IdInFlight, format!("id {id} is in flight already"));
                    return ControlFlow::Continue(Work::Answered(respond::failure(None, fault)));
                }
                ControlFlow::Continue(
                    self.request(&id, &method, params).unwrap_or_else(|fault| Work::Answered(respond::failure(Some(&id), fault))),
                )
            }
        }
    }

    fn notification(&mut self, method: &str, params: Params) -> ControlFlow<Closed, Work> {
        match method {
            "exit" => return ControlFlow::Break(Closed::Exit { after_shutdown: self.lifecycle.is_shut_down() }),
            "$/cancelRequest" => {
                // Nobody waits for an answer to this, and an id that is not in flight has just been answered.
                if let Some(handle) = target(&params).ok().and_then(|id| self.calls.get(&id)) {
                    handle.cancel();
                }
            }
            _ => tracing::debug!("a notification was ignored"),
        }
        ControlFlow::Continue(Work::Nothing)
    }

    fn request(&mut self, id: &CallId, method: &str, params: Params) -> Result<Work, Fault> {
        self.lifecycle.admit(method)?;
        match method {
            "initialize" => return Ok(Work::Answered(respond::success(id, &self.lifecycle.initialize(params)?))),
            "shutdown" => {
                self.lifecycle.shut_down();
                return Ok(Work::Answered(respond::success(id, "null")));
            }
            _ => {}
        }
        let limit = self.api.limits().calls_per_connection;
        // As many cancels may wait as calls may run: a full house must not lock its own exit.
        let limit = if method == "cancel" { 2 * limit } else { limit };
        if self.calls.len() >= limit {
            return Err(Fault::new(Kind::TooManyCalls, format!("this connection has {limit} calls in flight")).with("limit", limit));
        }
        let (call, handle) = Call::new(self.sender.clone());
        let answer = match method {
            "cancel" => self.cancel(id.clone(), params, call)?,
            _ => self.registered(id.clone(), method, params, call)?,
        };
        self.calls.insert(id.clone(), handle);
        Ok(Work::Running((id.clone(), answer)))
    }

    /// Answers after compute has stopped.
    fn cancel(&self, id: CallId, params: Params, call: Call) -> Result<BoxFuture<'static, String>, Fault> {
        let target = target(&params)?;
        let Some(handle) = self.calls.get(&target).cloned() else {
            return Err(Fault::new(Kind::UnknownCall, format!("no call with id {target} is in flight")));
        };
        handle.cancel();
        Ok(async move {
            let answer = respond::cancelled(&id, handle.ended().await);
            drop(call);
            answer
        }
        .boxed())
    }

    fn registered(&mut self, id: CallId, method: &str, params: Params, call: Call) -> Result<BoxFuture<'static, String>, Fault> {
        self.served += 1;
        let Some(work) = self.api.call(method, self.served, params, call) else {
            return Err(Fault::new(Kind::UnknownMethod, format!("unknown method {method:?}")).with("method", method));
        };
        let work = AssertUnwindSafe(work).catch_unwind();
        Ok(async move {
            match work.await {
                Ok(response) => respond::registered(&id, response.as_ref()),
                Err(_) => respond::failure(Some(&id), Fault::new(Kind::Internal, "the method panicked")),
            }
        }
        .boxed())
    }

    fn refuse_malformed(&mut self, malformed: &Malformed) -> ControlFlow<Closed> {
        let (kind, next) = match malformed {
            Malformed::TooLarge { .. } => (Kind::MessageTooLarge, ControlFlow::Continue(())),
            Malformed::NotUtf8 => (Kind::ParseError, ControlFlow::Continue(())),
            Malformed::BadHeader(_) | Malformed::Truncated => (Kind::ParseError, ControlFlow::Break(Closed::OutOfStep)),
        };
        self.reply = Some(respond::failure(None, Fault::new(kind, malformed.to_string())));
        next
    }
}

/// Which call is to be cancelled.
fn target(params: &Params) -> Result<CallId, Fault> {
    let params = jsonrpsee_types::Params::new(params.as_ref().map(|params| params.get()));
    Ok(read::<CancelParams>(&params)?.id)
}
