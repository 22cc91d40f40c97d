//! One JSON-RPC peer, over any transport that carries whole messages as text, until it goes.
//!
//! Outgoing before internal before incoming: what is ready leaves first, and a new message is read only when the last one
//! that was answered on the spot has had its answer taken. A peer that does not read can so still cancel, but not flood.
//! Calls run side by side inside this one future; dropping it drops their readers, which cancels them.

use super::{api::Api, parent, peer::Peer};
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt, future::OptionFuture};
use std::{
    future::poll_fn,
    ops::ControlFlow,
    task::{Poll, ready},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What was written already is given this long to leave, and so are the answers of calls that have just ended.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// A message that never became text. All but `BadHeader` and `Truncated` leave the stream in step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the message has more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the message is not UTF-8")]
    NotUtf8,
    #[error("{0}")]
    BadHeader(String),
    #[error("the input ended inside a message")]
    Truncated,
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    ByPeer,
    /// The peer sent `exit`, in good order when `shutdown` came before.
    Exit {
        after_shutdown: bool,
    },
    /// The process that `initialize` named is gone.
    ParentGone,
    /// What came can't be brought back into step.
    OutOfStep,
    /// Nothing can be written any more.
    Broken,
    Stopped,
}

/// What differs between transports.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// After the peer's last message its calls may go on this long, and are then cancelled: a pipe can end while its
    /// reader still waits.
    pub linger: Duration,
    /// Close when the process that `initialize` names is gone.
    pub watch_parent: bool,
    /// Close, when all calls have ended or are about to.
    pub stop: CancellationToken,
}

pub async fn serve<I, O>(mut incoming: I, mut outgoing: O, api: &Api, rules: Rules) -> Closed
where
    I: Stream<Item = Result<String, Malformed>> + Unpin,
    O: Sink<String> + Unpin,
{
    let (sender, mut outbox) = mpsc::channel(api.limits().outbox);
    let mut peer = Peer::new(api, sender);
    let mut parent_gone = None;
    let closed = loop {
        if rules.watch_parent && parent_gone.is_none() {
            parent_gone = peer.lifecycle.parent().map(|parent| parent::gone(parent).boxed());
        }
        tokio::select! {
            biased;
            written = write_one(&mut peer.reply, &mut outbox, &mut outgoing) => if written.is_err() { break Closed::Broken },
            Some(ended) = peer.running.next() => peer.forget(ended),
            () = rules.stop.cancelled() => break Closed::Stopped,
            Some(()) = OptionFuture::from(parent_gone.as_mut()) => break Closed::ParentGone,
            arrived = incoming.next(), if peer.reply.is_none() => match arrived {
                None => break Closed::ByPeer,
                Some(message) => if let ControlFlow::Break(closed) = peer.take(message) { break closed },
            },
        }
    };
    let linger = match closed {
        Closed::ByPeer | Closed::Exit { .. } => rules.linger,
        Closed::Stopped => FLUSH_TIME,
        Closed::ParentGone | Closed::OutOfStep | Closed::Broken => Duration::ZERO,
    };
    let _ = tokio::time::timeout(linger, answer_all(&mut peer, &mut outbox, &mut outgoing)).await;
    peer.cancel_all();
    let _ = tokio::time::timeout(FLUSH_TIME, answer_all(&mut peer, &mut outbox, &mut outgoing)).await;
    // A worker may be long in one piece of work, or stand still.
    peer.hurry_all();
    let _ = tokio::time::timeout(FLUSH_TIME, answer_all(&mut peer, &mut outbox, &mut outgoing)).await;
    let Peer { running, mut reply, sender, .. } = peer;
    drop((running, sender));
    let flush = async { while let Ok(()) = write_one(&mut reply, &mut outbox, &mut outgoing).await {} };
    if closed != Closed::Broken {
        let _ = tokio::time::timeout(FLUSH_TIME, flush).await;
        let _ = tokio::time::timeout(FLUSH_TIME, outgoing.flush()).await;
    }
    closed
}

/// Until every call has been answered, or nothing can be written any more.
async fn answer_all<O: Sink<String> + Unpin>(peer: &mut Peer<'_>, outbox: &mut mpsc::Receiver<String>, outgoing: &mut O) {
    while !peer.running.is_empty() {
        tokio::select! {
            biased;
            written = write_one(&mut peer.reply, outbox, outgoing) => if written.is_err() { break },
            Some(ended) = peer.running.next() => peer.forget(ended),
        }
    }
}

/// Hands the peer one message, the reply first, when it has room; else pushes what is under way. Cancel-safe.
async fn write_one<O: Sink<String> + Unpin>(
    reply: &mut Option<String>,
    outbox: &mut mpsc::Receiver<String>,
    outgoing: &mut O,
) -> Result<(), ()> {
    poll_fn(|cx| {
        if ready!(outgoing.poll_ready_unpin(cx)).is_err() {
            return Poll::Ready(Err(()));
        }
        let next = match reply.take() {
            Some(text) => Poll::Ready(Some(text)),
            None => outbox.poll_recv(cx),
        };
        match next {
            Poll::Ready(Some(text)) => Poll::Ready(outgoing.start_send_unpin(text).map_err(|_| ())),
            Poll::Ready(None) => Poll::Ready(Err(())),
            Poll::Pending => match outgoing.poll_flush_unpin(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(Err(())),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    })
    .await
}
