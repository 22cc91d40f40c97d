//! WebSocket clients that stop reading, too many clients, and clients that do not speak HTTP.

use crate::support::{Received, Server, Socket, TIMEOUT, call, receive, souffleur};
use serde_json::{Value, json};
use std::{collections::HashMap, io::Write, net::TcpStream, time::Instant};
use tokio::net::TcpSocket;

fn response(socket: &mut Socket) -> Value {
    loop {
        match receive(socket) {
            Received::Message(message) if message.get("method").is_none() => return message,
            Received::Message(_) => {}
            Received::Closed(code) => panic!("closed ({code:?}) instead of a response"),
        }
    }
}

fn request(socket: &mut Socket, text: String) -> Value {
    socket.send(text.into()).unwrap();
    response(socket)
}

/// With 20 logprobs per token these are several MB: more than the socket buffers hold.
const STREAMS: usize = 8;
const TOKENS: usize = 300;

/// A connection with the smallest receive buffer that the system allows.
fn small_buffer_connection(server: &Server) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let socket = runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(1)?;
        socket.connect(server.address).await?.into_std()
    });
    let socket = socket.unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

#[test]
fn a_stalled_reader_loses_no_text_and_delays_no_other_client() {
    let server = Server::new();
    let (mut stalled, mut other) = (server.connect_over(small_buffer_connection(&server)), server.connect());
    let name = |id: usize| format!("{id}{}", "-".repeat(240));
    for id in 0..STREAMS {
        let params = json!({
            "prompt": format!("x{id} ="), "maxTokens": TOKENS, "logitBias": { "0": -100 }, "logprobs": 20, "partialResultToken": name(id),
        });
        stalled.send(call(&id.to_string(), "complete", params).into()).unwrap();
    }
    // Meanwhile the other client is served, and all streams are computed although nothing is read.
    let short = request(&mut other, call("1", "complete", r#"{"prompt":"def add(a, b):","maxTokens":4}"#));
    assert_eq!(short["result"]["text"], " return a + b", "{short}");
    let start = Instant::now();
    loop {
        let status = request(&mut other, call("2", "status", "{}"));
        let rows = status["result"]["models"][0]["decoder"]["rows"].as_u64();
        if rows >= Some((STREAMS * TOKENS) as u64) && status["result"]["requestsInFlight"] == 0 {
            break;
        }
        assert!(start.elapsed() < 4 * TIMEOUT, "generation waits for the reader");
    }

    let mut received: HashMap<Value, (String, Vec<Value>, usize)> = HashMap::new();
    let mut ended = 0;
    while ended < STREAMS {
        let Received::Message(message) = receive(&mut stalled) else { panic!("closed") };
        if message.get("method").is_none() {
            assert_eq!(message["result"]["finishReason"], "length", "{message}");
            ended += 1;
            continue;
        }
        let value = &message["params"]["value"];
        let (text, tokens, updates) = received.entry(message["params"]["token"].clone()).or_default();
        text.push_str(value["text"].as_str().unwrap());
        tokens.extend(value["logprobs"].as_array().unwrap().iter().map(|sampled| sampled["token"].clone()));
        *updates += 1;
    }
    for id in 0..STREAMS {
        let (text, tokens, _) = &received[&json!(name(id))];
        assert_eq!(tokens.len(), TOKENS);
        let whole = request(&mut other, call("3", "detokenize", json!({ "tokens": tokens })));
        assert_eq!(whole["result"]["text"], **text);
    }
    let updates: usize = received.values().map(|(_, _, updates)| updates).sum();
    assert!(updates < STREAMS * TOKENS * 9 / 10, "the socket buffers held everything, so the client never stalled: {updates} updates");
}

#[test]
fn connections_leave_file_descriptors_for_a_worker() {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -Sn 64; exec \"$0\" \"$@\""]).arg(souffleur(&[]).get_program()).args(["serve", "--port", "0"]);
    let server = Server::start(command);
    let mut sockets: Vec<_> = (0..100).map(|_| server.connect()).collect();
    let response = request(sockets.last_mut().unwrap(), call("1", "complete", r#"{"prompt":"def add(a, b):","maxTokens":1}"#));
    assert_eq!(response["result"]["text"], " return", "{response}");
}

#[test]
fn requests_that_are_not_http_are_not_logged() {
    let mut command = souffleur(&["serve", "--port", "0"]);
    command.stderr(std::process::Stdio::piped());
    let mut server = Server::start(command);
    let mut stream = server.dial();
    stream.write_all(b"no HTTP at all\r\n\r\n").unwrap();
    // Reads to the end: by then the server has written its log.
    assert!(std::io::read_to_string(&mut stream).unwrap().starts_with("HTTP/1.1 400"));
    server.program.child.kill().unwrap();
    let logged = std::io::read_to_string(server.program.child.stderr.take().unwrap()).unwrap();
    assert_eq!(logged, "");
}
