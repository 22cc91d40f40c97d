//! What a method's handler gets besides its params, and what the connection keeps of a call.

use serde::Serialize;
use std::{future::Future, sync::Arc};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{envelope::CallId, error::Fault};
use crate::actors::Usage;

/// One call's side of its connection: where to stream, and how to learn of a cancel.
#[derive(Clone)]
pub(crate) struct Call(Arc<Shared>);

struct Shared {
    cancel: CancellationToken,
    hurry: CancellationToken,
    outbox: mpsc::Sender<String>,
    /// Its closing is the end of the call; its value is what a cancel is told.
    completion_tokens: watch::Sender<u32>,
}

impl Call {
    pub(crate) fn new(outbox: mpsc::Sender<String>) -> (Self, Handle) {
        let (cancel, hurry) = (CancellationToken::new(), CancellationToken::new());
        let (completion_tokens, ended) = watch::channel(0);
        let shared = Shared { cancel: cancel.clone(), hurry: hurry.clone(), outbox, completion_tokens };
        (Self(Arc::new(shared)), Handle { cancel, hurry, ended })
    }

    pub(crate) async fn cancelled(&self) {
        self.0.cancel.cancelled().await;
    }

    /// The connection is over and waits for nothing any more.
    pub(crate) async fn hurried(&self) {
        self.0.hurry.cancelled().await;
    }

    /// Drops the work at a cancel: for work that needs no goodbye.
    pub(crate) async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        tokio::select! {
            biased;
            () = self.cancelled() => Err(Fault::cancelled(Usage::default())),
            done = work => done,
        }
    }

    pub(crate) fn computed(&self, completion_tokens: u32) {
        self.0.completion_tokens.send_replace(completion_tokens);
    }

    pub(crate) fn progress(&self, token: ProgressToken) -> Progress {
        Progress { token, outbox: self.0.outbox.clone() }
    }
}

/// The connection's side of a call.
#[derive(Clone)]
pub(crate) struct Handle {
    cancel: CancellationToken,
    hurry: CancellationToken,
    ended: watch::Receiver<u32>,
}

impl Handle {
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Its answer is wanted now, also where a worker that was told to stop has not said that it has.
    pub(crate) fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Waits until the call is over; says how many tokens it computed.
    pub(crate) async fn ended(mut self) -> u32 {
        while self.ended.changed().await.is_ok() {}
        *self.ended.borrow()
    }
}

/// What an id may be, echoed with every piece.
#[derive(Clone, Debug)]
pub(crate) struct ProgressToken(pub(crate) CallId);

/// Sends `$/progress` under one token. Waits while the peer has not made room, so a slow peer gets larger pieces.
pub(crate) struct Progress {
    token: ProgressToken,
    outbox: mpsc::Sender<String>,
}

impl Progress {
    pub(crate) async fn send(&self, value: &impl Serialize) {
        let value = serde_json::to_string(value).expect("wire types have string keys and finite numbers");
        let token = &self.token.0;
        let text = format!(r#"{{"jsonrpc":"2.0","method":"$/progress","params":{{"token":{token},"value":{value}}}}}"#);
        // The receiver outlives every call: when the connection goes, this future goes with it.
        let _ = self.outbox.send(text).await;
    }
}
