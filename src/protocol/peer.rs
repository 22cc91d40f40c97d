//! One connection's peer: its calls in flight by id, and what each incoming message starts.

use super::{
    api::Api,
    call::{Call, CallHandle},
    envelope::{self, CallId, Envelope, Message, Params},
    error::{ErrorKind, FrameError, ResponseError},
    lifecycle::{CloseReason, Lifecycle},
    response,
    types::{CancelParams, parse_params},
};
use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use std::{collections::HashMap, ops::ControlFlow, panic::AssertUnwindSafe};
use tokio::sync::mpsc;

/// The response to one message.
enum Dispatch {
    /// The message was a notification.
    None,
    Ready(String),
    /// The response of a running call.
    Pending(CallId, BoxFuture<'static, String>),
}

pub(super) struct Peer<'a> {
    api: &'a Api,
    pub(super) sender: mpsc::Sender<String>,
    calls: HashMap<CallId, CallHandle>,
    /// Each yields the ids of the calls that it has answered.
    pub(super) running: FuturesUnordered<BoxFuture<'static, Vec<CallId>>>,
    /// An immediate response. No further message is read until it has been written.
    pub(super) reply: Option<String>,
    pub(super) lifecycle: Lifecycle,
    /// Calls to the registry so far; the registry's id of the last one.
    registry_calls: u64,
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
            registry_calls: 0,
        }
    }

    pub(super) fn remove(&mut self, ended: Vec<CallId>) {
        for id in ended {
            self.calls.remove(&id);
        }
    }

    pub(super) fn force_end_all(&self) {
        self.calls.values().for_each(CallHandle::force_end);
    }

    pub(super) fn cancel_all(&self) {
        self.calls.values().for_each(CallHandle::cancel);
    }

    pub(super) fn receive(&mut self, message: Result<String, FrameError>) -> ControlFlow<CloseReason> {
        let text = match message {
            Ok(text) => text,
            Err(error) => return self.refuse_frame(&error),
        };
        match envelope::parse(&text, self.api.limits().batch) {
            Err(error) => self.reply = Some(response::failure(None, error)),
            Ok(Envelope::Single(message)) => match self.dispatch(message)? {
                Dispatch::None => {}
                Dispatch::Ready(text) => self.reply = Some(text),
                Dispatch::Pending(id, response) => self.run(vec![id], response),
            },
            Ok(Envelope::Batch(_)) if self.lifecycle.is_lsp() => {
                let error = ResponseError::new(ErrorKind::BatchNotAllowed, "LSP has no batches");
                self.reply = Some(response::failure(None, error));
            }
            Ok(Envelope::Batch(messages)) => self.batch(messages)?,
        }
        ControlFlow::Continue(())
    }

    /// The requests run concurrently. Their responses are sent as one array, in the order of the batch.
    fn batch(&mut self, messages: Vec<Message>) -> ControlFlow<CloseReason> {
        let (mut ids, mut responses) = (Vec::new(), Vec::new());
        for message in messages {
            match self.dispatch(message)? {
                Dispatch::None => {}
                Dispatch::Ready(text) => responses.push(std::future::ready(text).boxed()),
                Dispatch::Pending(id, response) => {
                    ids.push(id);
                    responses.push(response);
                }
            }
        }
        if ids.is_empty() && !responses.is_empty() {
            let texts: Vec<_> = responses.into_iter().filter_map(FutureExt::now_or_never).collect();
            self.reply = Some(format!("[{}]", texts.join(",")));
        } else if !responses.is_empty() {
            self.run(ids, async move { format!("[{}]", join_all(responses).await.join(",")) }.boxed());
        }
        ControlFlow::Continue(())
    }

    /// The ids stay in use, and count against the call limit, until the response is in the outbox.
    fn run(&mut self, ids: Vec<CallId>, response: BoxFuture<'static, String>) {
        let outbox = self.sender.clone();
        self.running.push(
            async move {
                let text = response.await;
                let _ = outbox.send(text).await;
                ids
            }
            .boxed(),
        );
    }

    fn dispatch(&mut self, message: Message) -> ControlFlow<CloseReason, Dispatch> {
        match message {
            Message::Invalid { id, error } => {
                // Under the id of a running call, this error would be read as that call's response.
                let id = id.filter(|id| !self.calls.contains_key(id));
                ControlFlow::Continue(Dispatch::Ready(response::failure(id.as_ref(), error)))
            }
            Message::Notification { method, params } => self.notification(&method, params),
            Message::Request { id, method, params } => {
                if self.calls.contains_key(&id) {
                    let error = ResponseError::new(ErrorKind::IdInFlight, format!("id {id} is already in flight"));
                    return ControlFlow::Continue(Dispatch::Ready(response::failure(None, error)));
                }
                ControlFlow::Continue(
                    self.request(&id, &method, params).unwrap_or_else(|error| Dispatch::Ready(response::failure(Some(&id), error))),
                )
            }
        }
    }

    fn notification(&mut self, method: &str, params: Params) -> ControlFlow<CloseReason, Dispatch> {
        match method {
            "exit" => return ControlFlow::Break(CloseReason::Exit { after_shutdown: self.lifecycle.is_shut_down() }),
            "$/cancelRequest" => {
                // An unknown id is no error: that call's response may have crossed this notification.
                if let Some(handle) = id_to_cancel(&params).ok().and_then(|id| self.calls.get(&id)) {
                    handle.cancel();
                }
            }
            _ => tracing::debug!("ignored an unknown notification"),
        }
        ControlFlow::Continue(Dispatch::None)
    }

    fn request(&mut self, id: &CallId, method: &str, params: Params) -> Result<Dispatch, ResponseError> {
        self.lifecycle.admit(method)?;
        match method {
            "initialize" => return Ok(Dispatch::Ready(response::success(id, &self.lifecycle.initialize(params)?))),
            "shutdown" => {
                self.lifecycle.shut_down();
                return Ok(Dispatch::Ready(response::success(id, "null")));
            }
            _ => {}
        }
        let limit = self.api.limits().calls_per_connection;
        // Cancels have room beyond the limit, so that a connection with the maximum of calls can still cancel all of them.
        let limit = if method == "cancel" { 2 * limit } else { limit };
        if self.calls.len() >= limit {
            let message = format!("this connection has {limit} calls in flight");
            return Err(ResponseError::new(ErrorKind::TooManyCalls, message).with("limit", limit));
        }
        let (call, handle) = Call::new(self.sender.clone());
        let response = match method {
            "cancel" => self.cancel(id.clone(), params, call)?,
            _ => self.call_registry(id.clone(), method, params, call)?,
        };
        self.calls.insert(id.clone(), handle);
        Ok(Dispatch::Pending(id.clone(), response))
    }

    /// The response is sent when the cancelled call has ended.
    fn cancel(&self, id: CallId, params: Params, call: Call) -> Result<BoxFuture<'static, String>, ResponseError> {
        let target = id_to_cancel(&params)?;
        let Some(handle) = self.calls.get(&target).cloned() else {
            return Err(ResponseError::new(ErrorKind::UnknownCall, format!("no call with id {target} is in flight")));
        };
        handle.cancel();
        Ok(async move {
            let response = response::cancelled(&id, handle.ended().await);
            drop(call);
            response
        }
        .boxed())
    }

    fn call_registry(&mut self, id: CallId, method: &str, params: Params, call: Call) -> Result<BoxFuture<'static, String>, ResponseError> {
        self.registry_calls += 1;
        let Some(handler) = self.api.call(method, self.registry_calls, params, call) else {
            return Err(ResponseError::new(ErrorKind::UnknownMethod, format!("unknown method {method:?}")).with("method", method));
        };
        let handler = AssertUnwindSafe(handler).catch_unwind();
        Ok(async move {
            match handler.await {
                Ok(response) => response::from_registry(&id, response.as_ref()),
                Err(_) => response::failure(Some(&id), ResponseError::new(ErrorKind::Internal, "the method panicked")),
            }
        }
        .boxed())
    }

    fn refuse_frame(&mut self, error: &FrameError) -> ControlFlow<CloseReason> {
        let (kind, next) = match error {
            FrameError::TooLarge { .. } => (ErrorKind::MessageTooLarge, ControlFlow::Continue(())),
            FrameError::NotUtf8 => (ErrorKind::ParseError, ControlFlow::Continue(())),
            FrameError::BadHeader(_) | FrameError::Truncated => (ErrorKind::ParseError, ControlFlow::Break(CloseReason::FramingLost)),
        };
        self.reply = Some(response::failure(None, ResponseError::new(kind, error.to_string())));
        next
    }
}

/// The id in the params of a cancel.
fn id_to_cancel(params: &Params) -> Result<CallId, ResponseError> {
    let params = jsonrpsee_types::Params::new(params.as_ref().map(|params| params.get()));
    Ok(parse_params::<CancelParams>(&params)?.id)
}
