//! Sockets as they are: some stop reading, some are too many.

use crate::support::{Received, Server, Socket, TIMEOUT, call, receive, souffleur};
use serde_json::{Value, json};
use std::{collections::HashMap, io::Write, net::TcpStream, time::Instant};
use tokio::net::TcpSocket;

fn answer(socket: &mut Socket) -> Value {
    loop {
        match receive(socket) {
            Received::Message(message) if message.get("method").is_none() => return message,
            Received::Message(_) => {}
            Received::Closed(code) => panic!("closed ({code:?}) where an answer was expected"),
        }
    }
}

fn ask(socket: &mut Socket, text: String) -> Value {
    socket.send(text.into()).unwrap();
    answer(socket)
}

/// With every alternative of every token these are several MB: more than the system keeps for a socket that nobody reads.
const STREAMS: usize = 8;
const TOKENS: usize = 300;

/// A connection of which the system keeps as little as it can.
fn narrow(server: &Server) -> TcpStream {
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
fn a_reader_that_stops_keeps_its_whole_text_and_nobody_waits_for_it() {
    let server = Server::new();
    let (mut stalled, mut neighbour) = (server.connect_over(narrow(&server)), server.connect());
    let name = |id: usize| format!("{id}{}", "-".repeat(240));
    for id in 0..STREAMS {
        let params = json!({
            "prompt": format!("x{id} ="), "maxTokens": TOKENS, "logitBias": { "0": -100 }, "logprobs": 20, "partialResultToken": name(id),
        });
        stalled.send(call(&id.to_string(), "complete", params).into()).unwrap();
    }
    // The neighbour's text comes meanwhile, and all is computed although nothing is read.
    let short = ask(&mut neighbour, call("1", "complete", r#"{"prompt":"def add(a, b):","maxTokens":4}"#));
    assert_eq!(short["result"]["text"], " return a + b", "{short}");
    let start = Instant::now();
    loop {
        let status = ask(&mut neighbour, call("2", "status", "{}"));
        let rows = status["result"]["models"][0]["decoder"]["rows"].as_u64();
        if rows >= Some((STREAMS * TOKENS) as u64) && status["result"]["requestsInFlight"] == 0 {
            break;
        }
        assert!(start.elapsed() < 4 * TIMEOUT, "something waits for the reader");
    }

    let mut heard: HashMap<Value, (String, Vec<Value>, usize)> = HashMap::new();
    let mut ended = 0;
    while ended < STREAMS {
        let Received::Message(message) = receive(&mut stalled) else { panic!("closed") };
        if message.get("method").is_none() {
            assert_eq!(message["result"]["finishReason"], "length", "{message}");
            ended += 1;
            continue;
        }
        let value = &message["params"]["value"];
        let (text, tokens, pieces) = heard.entry(message["params"]["token"].clone()).or_default();
        text.push_str(value["text"].as_str().unwrap());
        tokens.extend(value["logprobs"].as_array().unwrap().iter().map(|sampled| sampled["token"].clone()));
        *pieces += 1;
    }
    for id in 0..STREAMS {
        let (text, tokens, _) = &heard[&json!(name(id))];
        assert_eq!(tokens.len(), TOKENS);
        let whole = ask(&mut neighbour, call("3", "detokenize", json!({ "tokens": tokens })));
        assert_eq!(whole["result"]["text"], **text);
    }
    let pieces: usize = heard.values().map(|(_, _, pieces)| pieces).sum();
    assert!(pieces < STREAMS * TOKENS * 9 / 10, "the system kept it all, so nobody stopped: {pieces} pieces");
}

#[test]
fn sockets_leave_room_for_a_worker() {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -Sn 64; exec \"$0\" \"$@\""]).arg(souffleur(&[]).get_program()).args(["serve", "--port", "0"]);
    let server = Server::start(command);
    let mut sockets: Vec<_> = (0..100).map(|_| server.connect()).collect();
    let answer = ask(sockets.last_mut().unwrap(), call("1", "complete", r#"{"prompt":"def add(a, b):","maxTokens":1}"#));
    assert_eq!(answer["result"]["text"], " return", "{answer}");
}

#[test]
fn what_strangers_send_is_not_logged() {
    let mut command = souffleur(&["serve", "--port", "0"]);
    command.stderr(std::process::Stdio::piped());
    let mut server = Server::start(command);
    let mut stream = server.dial();
    stream.write_all(b"no HTTP at all\r\n\r\n").unwrap();
    // To the end: by then it has said whatever it wanted to.
    assert!(std::io::read_to_string(&mut stream).unwrap().starts_with("HTTP/1.1 400"));
    server.program.child.kill().unwrap();
    let logged = std::io::read_to_string(server.program.child.stderr.take().unwrap()).unwrap();
    assert_eq!(logged, "");
}
