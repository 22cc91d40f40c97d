//! WebSocket over actix-web's upgrade: the request's payload is what we read, the response's body is what we write.
//!
//! tokio-tungstenite speaks the protocol: it refuses a frame by its announced size, before a byte of it is kept.

use crate::protocol::{Api, Closed, Malformed, Rules, connection, guard};
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

/// What lies between us and the HTTP server for each connection.
const PIPE_BYTES: usize = 16 << 10;
/// A larger buffer would be held by every idle connection, and a message is seldom longer.
const READ_BYTES: usize = 1 << 10;
/// A silent peer is asked for a sign of life.
const PING_PERIOD: Duration = Duration::from_secs(20);
/// Two minutes: a page in the background, or one that a debugger holds, is not gone.
const SILENT_PERIODS: u32 = 6;
/// Pings of a peer that are read on while our answers to them have not left: more would pile up where nobody reads.
const PONGS: usize = 64;
/// How long we read on, into nothing, after our goodbye: closing a socket with unread input would lose what we said.
const GOODBYE_TIME: Duration = Duration::from_secs(2);

/// What every WebSocket needs.
#[derive(Clone)]
pub(crate) struct Sockets {
    api: Api,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Sockets {
    pub(crate) fn new(api: Api, stop: CancellationToken) -> Self {
        let places = Arc::new(Semaphore::new(api.limits().connections));
        Self { api, places, stop }
    }
}

pub(crate) async fn upgrade(request: HttpRequest, payload: web::Payload, sockets: web::Data<Sockets>) -> HttpResponse {
    let accept = match accept(request.headers()) {
        Ok(accept) => accept,
        Err(StatusCode::UPGRADE_REQUIRED) => {
            let mut response = HttpResponse::UpgradeRequired();
            return response.insert_header((header::UPGRADE, "websocket")).insert_header((header::SEC_WEBSOCKET_VERSION, "13")).finish();
        }
        Err(status) => return HttpResponse::new(status),
    };
    let Ok(place) = Arc::clone(&sockets.places).try_acquire_owned() else {
        return HttpResponse::ServiceUnavailable().finish();
    };
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (_, write) = tokio::io::split(ours);
    let io = tokio::io::join(StreamReader::new(payload.map_err(std::io::Error::other)), write);
    let sockets = Sockets::clone(&sockets);
    actix_web::rt::spawn(converse(io, sockets, place));
    let mut response = HttpResponse::SwitchingProtocols();
    response.upgrade("websocket").insert_header((header::SEC_WEBSOCKET_ACCEPT, accept));
    if guard::subprotocols(request.headers()).any(|name| name == guard::SUBPROTOCOL.as_bytes()) {
        response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, guard::SUBPROTOCOL));
    }
    response.streaming(ReaderStream::with_capacity(theirs, READ_BYTES))
}

/// The handshake's answer. Extensions are not ours: permessage-deflate lets a small message grow without bound.
fn accept(headers: &HeaderMap) -> Result<String, StatusCode> {
    let names = |name, wanted: &str| {
        let mut values = headers.get_all(name).flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
        values.any(|value| value.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
    };
    let version = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version.as_bytes() == b"13");
    if !names(header::UPGRADE, "websocket") || !names(header::CONNECTION, "upgrade") || !version {
        return Err(StatusCode::UPGRADE_REQUIRED);
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY);
    match (keys.next(), keys.next()) {
        // Sixteen bytes in base64.
        (Some(key), None) if key.len() == 24 && key.as_bytes().ends_with(b"==") => Ok(derive_accept_key(key.as_bytes())),
        _ => Err(StatusCode::BAD_REQUEST),
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(io: S, sockets: Sockets, _place: OwnedSemaphorePermit) {
    let limit = sockets.api.limits().message_bytes;
    let config = WebSocketConfig::default()
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit))
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0);
    let socket = Rc::new(RefCell::new(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await));
    let close = Rc::new(Cell::new(None));
    let mut pings = tokio::time::interval(PING_PERIOD);
    pings.reset();
    // When it was us who stood still, a peer is not to pay for it with all the periods at once.
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let incoming = Incoming { socket: Rc::clone(&socket), close: Rc::clone(&close), pings, silent: 0, pongs: 0 };
    let rules = Rules { stop: sockets.stop, ..Rules::default() };
    let closed = connection::serve(incoming, Outgoing { socket: Rc::clone(&socket) }, &sockets.api, rules).await;
    let code = close.get().or(match closed {
        Closed::Stopped | Closed::ParentGone => Some(CloseCode::Away),
        Closed::Exit { .. } => Some(CloseCode::Normal),
        Closed::OutOfStep => Some(CloseCode::Protocol),
        Closed::ByPeer | Closed::Broken => None,
    });
    let Ok(socket) = Rc::try_unwrap(socket).map(RefCell::into_inner) else { unreachable!("both halves went with `serve`") };
    if let Some(code) = code {
        let _ = timeout(GOODBYE_TIME, goodbye(socket, code)).await;
    }
}

async fn goodbye<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>, code: CloseCode) {
    let frame = CloseFrame { code, reason: "".into() };
    if socket.close(Some(frame)).await.is_err() {
        return;
    }
    let mut io = socket.into_inner();
    let mut nothing = [0; READ_BYTES];
    while let Ok(1..) = io.read(&mut nothing).await {}
}

type Shared<S> = Rc<RefCell<WebSocketStream<S>>>;

/// Text messages. The standard's close codes for what is none.
struct Incoming<S> {
    socket: Shared<S>,
    close: Rc<Cell<Option<CloseCode>>>,
    pings: Interval,
    /// Periods without a sign of life.
    silent: u32,
    /// Answers to the peer's pings that may not have left yet.
    pongs: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for Incoming<S> {
    type Item = Result<String, Malformed>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while self.pings.poll_tick(cx).is_ready() {
            if self.silent == SILENT_PERIODS {
                self.close.set(Some(CloseCode::Away));
                return Poll::Ready(None);
            }
            self.silent += 1;
            let mut socket = self.socket.borrow_mut();
            let socket = Pin::new(&mut *socket);
            ping(socket, cx);
        }
        loop {
            if self.pongs == PONGS {
                // What is wrong with the socket, reading it will tell.
                let _ = ready!(self.socket.borrow_mut().poll_flush_unpin(cx));
                self.pongs = 0;
            }
            let message = ready!(self.socket.borrow_mut().poll_next_unpin(cx));
            self.silent = 0;
            let code = match message {
                Some(Ok(Message::Text(text))) => return Poll::Ready(Some(Ok(text.as_str().to_owned()))),
                Some(Ok(Message::Ping(_))) => {
                    self.pongs += 1;
                    continue;
                }
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Binary(_))) => Some(CloseCode::Unsupported),
                // tungstenite answers a close by itself.
                Some(Ok(Message::Close(_))) => continue,
                None => None,
                Some(Err(error)) => close_code(&error),
            };
            self.close.set(code);
            return Poll::Ready(None);
        }
    }
}

/// Only when nothing else waits to be written.
fn ping<S: AsyncRead + AsyncWrite + Unpin>(mut socket: Pin<&mut WebSocketStream<S>>, cx: &mut Context<'_>) {
    if let Poll::Ready(Ok(())) = socket.as_mut().poll_ready(cx)
        && socket.as_mut().start_send(Message::Ping(Vec::new().into())).is_ok()
    {
        let _ = socket.poll_flush(cx);
    }
}

fn close_code(error: &tungstenite::Error) -> Option<CloseCode> {
    use tungstenite::Error as Refused;
    match error {
        Refused::Capacity(_) => Some(CloseCode::Size),
        Refused::Utf8(_) => Some(CloseCode::Invalid),
        Refused::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => None,
        Refused::Protocol(_) | Refused::AttackAttempt => Some(CloseCode::Protocol),
        // The connection itself is gone, or was never one.
        _ => None,
    }
}

/// The same socket's other direction.
struct Outgoing<S> {
    socket: Shared<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<String> for Outgoing<S> {
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

    /// A conversation over a clock that jumps to whatever is next; says when the server was done with it.
    fn conversation<F: Future>(script: impl FnOnce(WebSocketStream<DuplexStream>) -> F) -> (Duration, F::Output) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let sockets = Sockets::new(Api::over(Methods::new(), Limits::default()), CancellationToken::new());
            let place = Arc::clone(&sockets.places).try_acquire_owned().unwrap();
            let start = Instant::now();
            let server = async {
                converse(ours, sockets, place).await;
                start.elapsed()
            };
            join(server, async { script(WebSocketStream::from_raw_socket(theirs, Role::Client, None).await).await }).await
        })
    }

    #[test]
    fn a_silent_peer_is_pinged_six_times_and_closed() {
        let (after, heard) = conversation(async |socket| {
            let (start, mut heard) = (Instant::now(), Vec::new());
            // Only the pipe is read: tungstenite would answer a ping.
            let mut pipe = socket.into_inner();
            let mut frame = [0; 2];
            while pipe.read_exact(&mut frame).await.is_ok() {
                heard.push((start.elapsed().as_secs(), frame[0]));
                let mut payload = vec![0; frame[1].into()];
                pipe.read_exact(&mut payload).await.unwrap();
                if frame[0] == 0x88 {
                    assert_eq!(payload, 1001u16.to_be_bytes());
                    break;
                }
            }
            heard
        });
        assert_eq!(heard, [(20, 0x89), (40, 0x89), (60, 0x89), (80, 0x89), (100, 0x89), (120, 0x89), (140, 0x88)]);
        assert_eq!(after, Duration::from_secs(140));
    }

    #[test]
    fn a_peer_that_answers_pings_is_kept() {
        let (_, pings) = conversation(async |mut socket| {
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
    fn pings_of_a_peer_that_does_not_read_are_not_read_for_ever() {
        conversation(async |socket| {
            let mut pipe = socket.into_inner();
            let ping = [&[0x89, 0x80 | 125, 0, 0, 0, 0][..], &[0; 125]].concat();
            // A megabyte, where the pipe holds sixteen KiB.
            let flood = async {
                for _ in 0..8000 {
                    pipe.write_all(&ping).await.unwrap();
                }
            };
            assert!(timeout(Duration::from_secs(10), flood).await.is_err(), "all of it was read");
        });
    }
}
