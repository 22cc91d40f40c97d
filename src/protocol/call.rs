//! A call in flight (a request without a response so far): the method's side (`Call`) and the connection's side
//! (`CallHandle`).

use serde::Serialize;
use std::{future::Future, sync::Arc};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{envelope::CallId, error::ResponseError};
use crate::actors::Usage;

/// Passed to a method with its params: sends progress to the peer, and reports a cancel.
#[derive(Clone)]
pub(crate) struct Call(Arc<CallState>);

struct CallState {
    cancel: CancellationToken,
    force_end: CancellationToken,
    outbox: mpsc::Sender<String>,
    /// Reported by the response to `cancel`. The channel closes at the end of the call.
    completion_tokens: watch::Sender<u32>,
}

impl Call {
    pub(crate) fn new(outbox: mpsc::Sender<String>) -> (Self, CallHandle) {
        let (cancel, force_end) = (CancellationToken::new(), CancellationToken::new());
        let (completion_tokens, ended) = watch::channel(0);
        let state = CallState { cancel: cancel.clone(), force_end: force_end.clone(), outbox, completion_tokens };
        (Self(Arc::new(state)), CallHandle { cancel, force_end, ended })
    }

    /// Resolves when the call is cancelled.
    pub(crate) async fn cancelled(&self) {
        self.0.cancel.cancelled().await;
    }

    /// Resolves when the connection, which is closing, no longer waits for the worker to acknowledge the cancel.
    pub(crate) async fn force_ended(&self) {
        self.0.force_end.cancelled().await;
    }

    /// Runs `work` and drops it on a cancel: for work that needs no clean-up.
    ///
    /// # Errors
    ///
    /// `Cancelled`, or the error of `work`.
    pub(crate) async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T, ResponseError>>) -> Result<T, ResponseError> {
        tokio::select! {
            biased;
            () = self.cancelled() => Err(ResponseError::cancelled(Usage::default())),
            result = work => result,
        }
    }

    /// Records the number of tokens that the call has computed.
    pub(crate) fn record_completion_tokens(&self, completion_tokens: u32) {
        self.0.completion_tokens.send_replace(completion_tokens);
    }

    pub(crate) fn progress(&self, token: ProgressToken) -> Progress {
        Progress { token, outbox: self.0.outbox.clone() }
    }
}

/// The connection's side of a call.
#[derive(Clone)]
pub(crate) struct CallHandle {
    cancel: CancellationToken,
    force_end: CancellationToken,
    ended: watch::Receiver<u32>,
}

impl CallHandle {
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Asks for the response now, even if the worker has not acknowledged the cancel.
    pub(crate) fn force_end(&self) {
        self.force_end.cancel();
    }

    /// Waits for the end of the call and returns the number of tokens that it computed.
    pub(crate) async fn ended(mut self) -> u32 {
        while self.ended.changed().await.is_ok() {}
        *self.ended.borrow()
    }
}

/// LSP's progress token: a string or an integer, limited as an id is. Every `$/progress` notification carries it.
#[derive(Clone, Debug)]
pub(crate) struct ProgressToken(pub(crate) CallId);

/// Sends `$/progress` notifications with one token. Waits while the outbox is full, so a slow peer gets fewer and larger
/// partial results.
pub(crate) struct Progress {
    token: ProgressToken,
    outbox: mpsc::Sender<String>,
}

impl Progress {
    pub(crate) async fn send(&self, value: &impl Serialize) {
        let value = serde_json::to_string(value).expect("wire types have string keys and finite numbers");
        let token = &self.token.0;
        let text = format!(r#"{{"jsonrpc":"2.0","method":"$/progress","params":{{"token":{token},"value":{value}}}}}"#);
        // The receiver outlives every call: closing the connection drops this future first.
        let _ = self.outbox.send(text).await;
    }
}
