//! Starts the real program and talks to it over each transport. Waits for a message or for the program's exit have a timeout.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Lines, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::{
    self, Message, WebSocket,
    client::{IntoClientRequest, client_with_config},
    protocol::WebSocketConfig,
};

/// Longer than a cold start on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// How messages are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Lines,
    Headers,
    WebSocket,
}

pub(crate) const TRANSPORTS: [Transport; 3] = [Transport::Lines, Transport::Headers, Transport::WebSocket];

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Received {
    Message(Value),
    /// With the close code of a WebSocket.
    Closed(Option<u16>),
}

/// A client with its own program.
pub(crate) struct Client {
    inner: Inner,
}

enum Inner {
    StdioClient(Box<StdioClient>),
    Socket { socket: Box<Socket>, server: Server },
}

impl Client {
    pub(crate) fn new(transport: Transport) -> Self {
        Self::with(transport, &[])
    }

    pub(crate) fn with(transport: Transport, arguments: &[&str]) -> Self {
        let command = match transport {
            Transport::Lines | Transport::Headers => StdioClient::command(arguments),
            Transport::WebSocket => Server::command(arguments),
        };
        Self::start(transport, command)
    }

    pub(crate) fn start(transport: Transport, command: Command) -> Self {
        let inner = match transport {
            Transport::Lines | Transport::Headers => Inner::StdioClient(Box::new(StdioClient::start(transport, command))),
            Transport::WebSocket => {
                let server = Server::start(command);
                Inner::Socket { socket: Box::new(server.connect()), server }
            }
        };
        Self { inner }
    }

    pub(crate) fn send(&mut self, text: impl ToString) {
        let text = text.to_string();
        match &mut self.inner {
            Inner::StdioClient(pipes) => {
                let framed = pipes.frame(&text);
                pipes.write(&framed);
            }
            Inner::Socket { socket, .. } => socket.send(Message::text(text)).expect("the message is sent"),
        }
    }

    pub(crate) fn receive(&mut self) -> Received {
        match &mut self.inner {
            Inner::StdioClient(pipes) => pipes.receive(),
            Inner::Socket { socket, .. } => receive(socket),
        }
    }

    /// The next message.
    #[track_caller]
    pub(crate) fn message(&mut self) -> Value {
        match self.receive() {
            Received::Message(message) => message,
            Received::Closed(code) => panic!("closed ({code:?}) instead of a message"),
        }
    }

    /// The next response. Skips notifications.
    #[track_caller]
    pub(crate) fn response(&mut self) -> Value {
        loop {
            let message = self.message();
            if message.get("method").is_none() {
                return message;
            }
        }
    }

    #[track_caller]
    pub(crate) fn request(&mut self, text: impl ToString) -> Value {
        self.send(text);
        self.response()
    }

    /// The program's process id.
    #[allow(dead_code, reason = "the failpoint tests use it")]
    pub(crate) fn pid(&self) -> u32 {
        match &self.inner {
            Inner::StdioClient(pipes) => pipes.program.child.id(),
            Inner::Socket { server, .. } => server.program.child.id(),
        }
    }

    /// The exit status of a stdio program; waits for it. `None` for a server, which keeps running.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        match &mut self.inner {
            Inner::StdioClient(pipes) => Some(pipes.program.wait()),
            Inner::Socket { .. } => None,
        }
    }
}

/// A child process, killed when this is dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    /// The program's `XDG_RUNTIME_DIR`, where a server writes its token file.
    _home: tempfile::TempDir,
}

impl Program {
    pub(crate) fn start(mut command: Command) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let child = command.env("XDG_RUNTIME_DIR", home.path()).spawn().expect("the program starts");
        Self { child, _home: home }
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child process") {
                return status;
            }
            assert!(start.elapsed() < TIMEOUT, "the program does not exit");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Resident memory in MiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a running process");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") >> 10
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn souffleur(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_souffleur"));
    command.args(arguments);
    command
}

/// `souffleur stdio`, with a thread that reads its output.
pub(crate) struct StdioClient {
    pub(crate) program: Program,
    transport: Transport,
    input: Option<ChildStdin>,
    output: Receiver<Value>,
}

impl StdioClient {
    pub(crate) fn new(transport: Transport, arguments: &[&str]) -> Self {
        Self::start(transport, Self::command(arguments))
    }

    pub(crate) fn command(arguments: &[&str]) -> Command {
        souffleur(&[&["stdio"], arguments].concat())
    }

    pub(crate) fn start(transport: Transport, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = Program::start(command);
        let input = program.child.stdin.take();
        let mut reader = BufReader::new(program.child.stdout.take().expect("piped"));
        let (sender, output) = sync_channel(16);
        thread::spawn(move || {
            while let Some(text) = read_message(&mut reader, transport) {
                let message = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Self { program, transport, input, output }
    }

    pub(crate) fn frame(&self, text: &str) -> Vec<u8> {
        match self.transport {
            Transport::Headers => format!("Content-Length: {}\r\n\r\n{text}", text.len()).into_bytes(),
            Transport::Lines | Transport::WebSocket => format!("{text}\n").into_bytes(),
        }
    }

    /// Ignores errors: a program that has closed its input may not read everything.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("not closed yet");
        let _ = input.write_all(bytes).and_then(|()| input.flush());
    }

    pub(crate) fn close(&mut self) {
        self.input = None;
    }

    pub(crate) fn receive(&mut self) -> Received {
        use std::sync::mpsc::RecvTimeoutError;
        match self.output.recv_timeout(TIMEOUT) {
            Ok(message) => Received::Message(message),
            Err(RecvTimeoutError::Disconnected) => Received::Closed(None),
            Err(RecvTimeoutError::Timeout) => panic!("no message within {TIMEOUT:?}"),
        }
    }
}

/// The next message; `None` at the end of the output. Panics at unframed output, since stdout carries only the protocol. That ends
/// the reader thread, which `receive` reports as `Closed`.
fn read_message(reader: &mut impl BufRead, transport: Transport) -> Option<String> {
    let mut line = String::new();
    if reader.read_line(&mut line).expect("UTF-8") == 0 {
        return None;
    }
    if transport != Transport::Headers {
        return Some(line.strip_suffix('\n').expect("a whole line").to_owned());
    }
    let length = line.strip_prefix("Content-Length: ").and_then(|text| text.trim_end().parse().ok());
    let mut body = vec![0; length.unwrap_or_else(|| panic!("not a header: {line:?}"))];
    line.clear();
    reader.read_line(&mut line).expect("UTF-8");
    assert_eq!(line, "\r\n");
    reader.read_exact(&mut body).expect("a whole body");
    Some(String::from_utf8(body).expect("UTF-8"))
}

/// `souffleur serve` on a free port.
pub(crate) struct Server {
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    pub(crate) token_file: PathBuf,
    /// Keeps stdout open; the rest is not read.
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(arguments: &[&str]) -> Self {
        Self::start(Self::command(arguments))
    }

    pub(crate) fn command(arguments: &[&str]) -> Command {
        souffleur(&[&["serve", "--port", "0"], arguments].concat())
    }

    pub(crate) fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped());
        let mut program = Program::start(command);
        let mut lines = BufReader::new(program.child.stdout.take().expect("piped")).lines();
        let mut line = |start: &str| {
            let line = lines.next().expect("a line of output").expect("UTF-8");
            line.strip_prefix(start).unwrap_or_else(|| panic!("{line:?} does not start with {start:?}")).to_owned()
        };
        let address = line("listening on ws://").trim_end_matches("/rpc").parse().expect("an address");
        let token_file = PathBuf::from(line("token in "));
        let token = std::fs::read_to_string(&token_file).expect("the token's file").trim().to_owned();
        Self { program, address, token, token_file, _lines: lines }
    }

    pub(crate) fn connect(&self) -> Socket {
        self.connect_over(self.dial())
    }

    pub(crate) fn connect_over(&self, stream: TcpStream) -> Socket {
        let mut request = format!("ws://{}/rpc", self.address).into_client_request().expect("an address");
        let bearer = format!("Bearer {}", self.token).parse().expect("hexadecimal");
        request.headers_mut().insert("authorization", bearer);
        let config = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
        client_with_config(request, stream, Some(config)).expect("a handshake").0
    }

    pub(crate) fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a time");
        stream.set_nodelay(true).expect("a socket");
        stream
    }

    /// A connection after the WebSocket handshake, to write raw bytes to.
    pub(crate) fn raw(&self) -> TcpStream {
        let mut stream = self.dial();
        let (address, token) = (self.address, &self.token);
        let handshake = format!(
            "GET /rpc?token={token} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n"
        );
        stream.write_all(handshake.as_bytes()).expect("room");
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        stream
    }
}

/// Reads the head of an HTTP response and nothing after it.
pub(crate) fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("a response in time") == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("ASCII")
}

pub(crate) type Socket = WebSocket<TcpStream>;

pub(crate) fn receive(socket: &mut Socket) -> Received {
    loop {
        return match socket.read() {
            Ok(Message::Text(text)) => Received::Message(serde_json::from_str(&text).expect("JSON")),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Ok(Message::Binary(_)) => panic!("the server never sends binary messages"),
            Ok(Message::Close(frame)) => Received::Closed(frame.map(|frame| frame.code.into())),
            Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("no message within {TIMEOUT:?}")
            }
            Err(_) => Received::Closed(None),
        };
    }
}

pub(crate) fn call(id: &str, method: &str, params: impl ToString) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{}}}"#, params.to_string())
}

/// A copy of the embedded model's files.
pub(crate) fn model_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(assets.join(file), folder.path().join(file)).expect("room for a copy");
    }
    folder
}
