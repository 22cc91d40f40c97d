//! The loop of one JSON-RPC connection, over any transport that carries whole messages as text.
//!
//! Each turn of the loop prefers writing to removing ended calls, and that to reading. The next message is read only when the
//! immediate response to the last one (`Peer::reply`) has been passed to the sink, so a peer that does not read can't flood the
//! server. While no response waits there, the peer can also cancel: notifications get no response. Calls run concurrently inside
//! this one future. Dropping it drops the calls with their transcript readers, and requests without readers are cancelled.

use super::{api::Api, error::FrameError, lifecycle::CloseReason, parent, peer::Peer};
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt, future::OptionFuture};
use std::{
    future::poll_fn,
    ops::ControlFlow,
    task::{Poll, ready},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Time limit of each step of closing: for calls to end by themselves after `stop`, for calls to end after a cancel, for calls to end
/// after `force_end`, for the outbox to be written, and for the sink to be flushed.
const CLOSE_STEP_TIMEOUT: Duration = Duration::from_secs(1);

/// Options that differ between transports.
#[derive(Clone, Debug, Default)]
pub struct ConnectionOptions {
    /// How long calls may go on after the end of the input or an `exit` notification, before they are cancelled. A client that has
    /// closed its end of the input pipe may still wait for responses.
    pub linger: Duration,
    /// Close when the process named by `initialize` (`processId`) has exited.
    pub watch_parent: bool,
    /// Cancelled to close the connection.
    pub stop: CancellationToken,
}

/// Serves one connection until it closes. `incoming` yields messages as text, `outgoing` takes them.
pub async fn serve<I, O>(mut incoming: I, mut outgoing: O, api: &Api, options: ConnectionOptions) -> CloseReason
where
    I: Stream<Item = Result<String, FrameError>> + Unpin,
    O: Sink<String> + Unpin,
{
    let (sender, mut outbox) = mpsc::channel(api.limits().outbox);
    let mut peer = Peer::new(api, sender);
    let mut parent_exited = None;
    let reason = loop {
        if options.watch_parent && parent_exited.is_none() {
            parent_exited = peer.lifecycle.parent().map(|parent| parent::exited(parent).boxed());
        }
        tokio::select! {
            biased;
            written = write_one(&mut peer.reply, &mut outbox, &mut outgoing) => if written.is_err() { break CloseReason::WriteFailed },
            Some(ids) = peer.running.next() => peer.remove(ids),
            () = options.stop.cancelled() => break CloseReason::Stopped,
            Some(()) = OptionFuture::from(parent_exited.as_mut()) => break CloseReason::ParentExited,
            message = incoming.next(), if peer.reply.is_none() => match message {
                None => break CloseReason::ByPeer,
                Some(message) => if let ControlFlow::Break(reason) = peer.receive(message) { break reason },
            },
        }
    };
    let linger = match reason {
        CloseReason::ByPeer | CloseReason::Exit { .. } => options.linger,
        CloseReason::Stopped => CLOSE_STEP_TIMEOUT,
        CloseReason::ParentExited | CloseReason::FramingLost | CloseReason::WriteFailed => Duration::ZERO,
    };
    let _ = tokio::time::timeout(linger, finish_calls(&mut peer, &mut outbox, &mut outgoing)).await;
    peer.cancel_all();
    let _ = tokio::time::timeout(CLOSE_STEP_TIMEOUT, finish_calls(&mut peer, &mut outbox, &mut outgoing)).await;
    // A worker may be in a long step, or stalled, and not acknowledge the cancel.
    peer.force_end_all();
    let _ = tokio::time::timeout(CLOSE_STEP_TIMEOUT, finish_calls(&mut peer, &mut outbox, &mut outgoing)).await;
    let Peer { running, mut reply, sender, .. } = peer;
    drop((running, sender));
    let flush = async { while let Ok(()) = write_one(&mut reply, &mut outbox, &mut outgoing).await {} };
    if reason != CloseReason::WriteFailed {
        let _ = tokio::time::timeout(CLOSE_STEP_TIMEOUT, flush).await;
        let _ = tokio::time::timeout(CLOSE_STEP_TIMEOUT, outgoing.flush()).await;
    }
    reason
}

/// Runs the calls until the response of each is in the outbox, or writing has failed. Writes meanwhile.
async fn finish_calls<O: Sink<String> + Unpin>(peer: &mut Peer<'_>, outbox: &mut mpsc::Receiver<String>, outgoing: &mut O) {
    while !peer.running.is_empty() {
        tokio::select! {
            biased;
            written = write_one(&mut peer.reply, outbox, outgoing) => if written.is_err() { break },
            Some(ids) = peer.running.next() => peer.remove(ids),
        }
    }
}

/// Passes one message to `outgoing` when it has room: `reply`, else the next of `outbox`. Flushes while there is no message.
/// Cancel-safe.
///
/// # Errors
///
/// Writing has failed, or `outbox` is closed and empty.
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
