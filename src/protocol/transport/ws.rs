//! WebSocket over actix-web's upgrade: reads come from the request's payload, writes go to the response's body.
//!
//! tokio-tungstenite implements the protocol. It refuses a frame that is too large from its header, before it buffers any of
//! the payload.

use crate::protocol::{Api, CloseReason, ConnectionOptions, FrameError, connection, guard};
use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header, header::HeaderMap},
    web,
};
use futures_util::{Sink, SinkExt, Stream, StreamExt, TryStreamExt};
use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Interval, MissedTickBehavior, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::{
    io::{ReaderStream, StreamReader},
    sync::CancellationToken,
};

/// Bytes of the pipe between each connection and the HTTP server.
const PIPE_BYTES: usize = 16 << 10;
/// Size of a connection's buffers. Small, because every idle connection holds them; messages are rarely longer.
const READ_BYTES: usize = 1 << 10;
/// How often a ping is sent.
const PING_PERIOD: Duration = Duration::from_secs(20);
/// Pings without an answer before the connection is closed. It is closed one `PING_PERIOD` after the last of them, when the
/// peer has been silent for 140 s: a browser tab that is in the background or paused in a debugger may be slow to answer.
const UNANSWERED_PINGS_MAX: u32 = 6;
/// Pings from the peer that are answered before a flush is awaited. Without this limit, the pongs for a peer that does not
/// read would use more and more memory.
const UNFLUSHED_PONGS_MAX: usize = 64;
/// Time limit for sending the close frame and then reading and discarding the peer's input. Closing a socket with unread
/// input resets the connection, and the peer could lose the last messages.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// State shared by all WebSocket connections.
#[derive(Clone)]
pub(crate) struct WebSocketState {
    api: Api,
    /// One for each open connection.
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl WebSocketState {
    pub(crate) fn new(api: Api, stop: CancellationToken) -> Self {
        let permits = Arc::new(Semaphore::new(api.limits().connections));
        Self { api, permits, stop }
    }
}

/// Answers an upgrade request and starts its connection.
pub(crate) async fn upgrade(request: HttpRequest, payload: web::Payload, state: web::Data<WebSocketState>) -> HttpResponse {
    let accept_key = match accept_key(request.headers()) {
        Ok(key) => key,
        Err(StatusCode::UPGRADE_REQUIRED) => {
            let mut response = HttpResponse::UpgradeRequired();
            return response.insert_header((header::UPGRADE, "websocket")).insert_header((header::SEC_WEBSOCKET_VERSION, "13")).finish();
        }
        Err(status) => return HttpResponse::new(status),
    };
    let Ok(permit) = Arc::clone(&state.permits).try_acquire_owned() else {
        return HttpResponse::ServiceUnavailable().finish();
    };
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (_, write) = tokio::io::split(ours);
    let io = tokio::io::join(StreamReader::new(payload.map_err(std::io::Error::other)), write);
    let state = WebSocketState::clone(&state);
    actix_web::rt::spawn(run_connection(io, state, permit));
    let mut response = HttpResponse::SwitchingProtocols();
    response.upgrade("websocket").insert_header((header::SEC_WEBSOCKET_ACCEPT, accept_key));
    if guard::subprotocols(request.headers()).any(|name| name == guard::SUBPROTOCOL.as_bytes()) {
        response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, guard::SUBPROTOCOL));
    }
    response.streaming(ReaderStream::with_capacity(theirs, READ_BYTES))
}

/// Validates an upgrade request. Returns the `Sec-WebSocket-Accept` value, or the status that refuses the request.
///
/// No extension is negotiated: permessage-deflate lets a small message expand without bound.
fn accept_key(headers: &HeaderMap) -> Result<String, StatusCode> {
    let lists = |name, wanted: &str| {
        let mut values = headers.get_all(name).flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
        values.any(|value| value.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
    };
    let version = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version.as_bytes() == b"13");
    if !lists(header::UPGRADE, "websocket") || !lists(header::CONNECTION, "upgrade") || !version {
        return Err(StatusCode::UPGRADE_REQUIRED);
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY);
    match (keys.next(), keys.next()) {
        // 16 bytes in base64.
        (Some(key), None) if key.len() == 24 && key.as_bytes().ends_with(b"==") => Ok(derive_accept_key(key.as_bytes())),
        _ => Err(StatusCode::BAD_REQUEST),
    }
}

async fn run_connection<S: AsyncRead + AsyncWrite + Unpin>(io: S, state: WebSocketState, _permit: OwnedSemaphorePermit) {
    let limit = state.api.limits().message_bytes;
    let config = WebSocketConfig::default()
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit))
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0);
    let socket = Rc::new(RefCell::new(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await));
    let stream_close_code = Rc::new(Cell::new(None));
    let mut ping_timer = tokio::time::interval(PING_PERIOD);
    ping_timer.reset();
    // After a pause of this process, missed ticks must not count as unanswered pings.
    ping_timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream = MessageStream {
        socket: Rc::clone(&socket),
        close_code: Rc::clone(&stream_close_code),
        ping_timer,
        unanswered_pings: 0,
        unflushed_pongs: 0,
    };
    let options = ConnectionOptions { stop: state.stop, ..ConnectionOptions::default() };
    let reason = connection::serve(stream, MessageSink { socket: Rc::clone(&socket) }, &state.api, options).await;
    let code = stream_close_code.get().or(match reason {
        CloseReason::Stopped | CloseReason::ParentExited => Some(CloseCode::Away),
        CloseReason::Exit { .. } => Some(CloseCode::Normal),
        CloseReason::FramingLost => Some(CloseCode::Protocol),
        CloseReason::ByPeer | CloseReason::WriteFailed => None,
    });
    let Ok(socket) = Rc::try_unwrap(socket).map(RefCell::into_inner) else { unreachable!("`serve` has dropped both halves") };
    if let Some(code) = code {
        let _ = timeout(CLOSE_TIMEOUT, close_socket(socket, code)).await;
    }
}

async fn close_socket<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>, code: CloseCode) {
    let frame = CloseFrame { code, reason: "".into() };
    if socket.close(Some(frame)).await.is_err() {
        return;
    }
    let mut io = socket.into_inner();
    let mut discarded = [0; READ_BYTES];
    while let Ok(1..) = io.read(&mut discarded).await {}
}

type SharedSocket<S> = Rc<RefCell<WebSocketStream<S>>>;

/// The socket's text messages. It also answers and sends pings. A binary message, an error or a silent peer ends the stream
/// and sets RFC 6455's close code.
struct MessageStream<S> {
    socket: SharedSocket<S>,
    close_code: Rc<Cell<Option<CloseCode>>>,
    ping_timer: Interval,
    /// Ping periods that have passed since the last frame from the peer.
    unanswered_pings: u32,
    /// Pongs queued since this stream last awaited a flush.
    unflushed_pongs: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for MessageStream<S> {
    type Item = Result<String, FrameError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while self.ping_timer.poll_tick(cx).is_ready() {
            if self.unanswered_pings == UNANSWERED_PINGS_MAX {
                self.close_code.set(Some(CloseCode::Away));
                return Poll::Ready(None);
            }
            self.unanswered_pings += 1;
            let mut socket = self.socket.borrow_mut();
            let socket = Pin::new(&mut *socket);
            ping(socket, cx);
        }
        loop {
            if self.unflushed_pongs == UNFLUSHED_PONGS_MAX {
                // An error of the socket is reported by the read below.
                let _ = ready!(self.socket.borrow_mut().poll_flush_unpin(cx));
                self.unflushed_pongs = 0;
            }
            let message = ready!(self.socket.borrow_mut().poll_next_unpin(cx));
            self.unanswered_pings = 0;
            let code = match message {
                Some(Ok(Message::Text(text))) => return Poll::Ready(Some(Ok(text.as_str().to_owned()))),
                Some(Ok(Message::Ping(_))) => {
                    self.unflushed_pongs += 1;
                    continue;
                }
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Binary(_))) => Some(CloseCode::Unsupported),
                // tungstenite answers the close frame; the next read returns `None`.
                Some(Ok(Message::Close(_))) => continue,
                None => None,
                Some(Err(error)) => close_code(&error),
            };
            self.close_code.set(code);
            return Poll::Ready(None);
        }
    }
}

/// Sends a ping, unless other messages still wait to be written.
fn ping<S: AsyncRead + AsyncWrite + Unpin>(mut socket: Pin<&mut WebSocketStream<S>>, cx: &mut Context<'_>) {
    if let Poll::Ready(Ok(())) = socket.as_mut().poll_ready(cx)
        && socket.as_mut().start_send(Message::Ping(Vec::new().into())).is_ok()
    {
        let _ = socket.poll_flush(cx);
    }
}

fn close_code(error: &tungstenite::Error) -> Option<CloseCode> {
    use tungstenite::Error as WsError;
    match error {
        WsError::Capacity(_) => Some(CloseCode::Size),
        WsError::Utf8(_) => Some(CloseCode::Invalid),
        WsError::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => None,
        WsError::Protocol(_) | WsError::AttackAttempt => Some(CloseCode::Protocol),
        // The connection is lost: no close frame can be sent.
        _ => None,
    }
}

/// The writing half of the same socket.
struct MessageSink<S> {
    socket: SharedSocket<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<String> for MessageSink<S> {
    type Error = tungstenite::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_ready(cx)
    }
    fn start_send(self: Pin<&mut Self>, text: String) -> Result<(), Self::Error> {
        Pin::new(&mut *self.socket.borrow_mut()).start_send(Message::text(text))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_flush(cx)
    }
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use futures_util::future::join;
    use jsonrpsee_core::server::Methods;
    use std::mem::discriminant;
    use tokio::{
        io::{AsyncWriteExt, DuplexStream},
        time::Instant,
    };

    /// Runs a client script against a connection under paused time. Returns the time until the server had closed the
    /// connection, and the script's result.
    fn with_client<F: Future>(script: impl FnOnce(WebSocketStream<DuplexStream>) -> F) -> (Duration, F::Output) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let state = WebSocketState::new(Api::with_methods(Methods::new(), Limits::default()), CancellationToken::new());
            let permit = Arc::clone(&state.permits).try_acquire_owned().unwrap();
            let start = Instant::now();
            let server = async {
                run_connection(ours, state, permit).await;
                start.elapsed()
            };
            join(server, async { script(WebSocketStream::from_raw_socket(theirs, Role::Client, None).await).await }).await
        })
    }

    #[test]
    fn a_silent_peer_is_pinged_six_times_and_closed() {
        let (after, frames) = with_client(async |socket| {
            let (start, mut frames) = (Instant::now(), Vec::new());
            // Reads raw frames: tungstenite would answer a ping.
            let mut pipe = socket.into_inner();
            let mut frame = [0; 2];
            while pipe.read_exact(&mut frame).await.is_ok() {
                frames.push((start.elapsed().as_secs(), frame[0]));
                let mut payload = vec![0; frame[1].into()];
                pipe.read_exact(&mut payload).await.unwrap();
                if frame[0] == 0x88 {
                    assert_eq!(payload, 1001u16.to_be_bytes());
                    break;
                }
            }
            frames
        });
        assert_eq!(frames, [(20, 0x89), (40, 0x89), (60, 0x89), (80, 0x89), (100, 0x89), (120, 0x89), (140, 0x88)]);
        assert_eq!(after, Duration::from_secs(140));
    }

    #[test]
    fn a_peer_that_answers_pings_is_kept() {
        let (_, pings) = with_client(async |mut socket| {
            let mut pings = 0;
            while pings < 100 {
                let ping = socket.next().await.unwrap().unwrap();
                assert_eq!(discriminant(&ping), discriminant(&Message::Ping(Vec::new().into())));
                pings += 1;
            }
            pings
        });
        assert_eq!(pings, 100);
    }

    #[test]
    fn a_flood_of_pings_from_a_peer_that_does_not_read_is_stopped() {
        with_client(async |socket| {
            let mut pipe = socket.into_inner();
            let ping = [&[0x89, 0x80 | 125, 0, 0, 0, 0][..], &[0; 125]].concat();
            // 1 MB into a pipe of 16 KiB.
            let flood = async {
                for _ in 0..8000 {
                    pipe.write_all(&ping).await.unwrap();
                }
            };
            assert!(timeout(Duration::from_secs(10), flood).await.is_err(), "all of it was read");
        });
    }
}
