//! Every way the program can be shut down while streams run: one response to each request, and no process is left.

use crate::{
    program::{Received, Server, StdioClient, Transport, call, receive},
    support::{exclusive, exits_within, is_running, signal},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Message;

/// All processes have exited after this time.
const LIMIT: Duration = Duration::from_secs(2);
/// Requests that need longer than the shutdown takes.
const LONG: usize = 8;

fn long(id: usize) -> String {
    let prompt = format!("# text {id}\n");
    let params = json!({ "prompt": prompt, "maxTokens": 2000, "logitBias": { "0": -100 }, "partialResultToken": id });
    call(&id.to_string(), "complete", params)
}

fn short() -> String {
    call("\"short\"", "complete", json!({ "prompt": "def add(a, b):", "maxTokens": 6, "partialResultToken": "short" }))
}

/// The responses up to the close, by id. Each must come once.
fn responses(mut next: impl FnMut() -> Received) -> (BTreeMap<String, Value>, Option<u16>) {
    let mut responses = BTreeMap::new();
    loop {
        match next() {
            Received::Message(message) if message.get("method").is_some() => {}
            Received::Message(message) => {
                let previous = responses.insert(message["id"].to_string(), message);
                assert!(previous.is_none(), "a second response: {previous:?}");
            }
            Received::Closed(code) => return (responses, code),
        }
    }
}

/// Every request has a response; that of the long ones is this error.
fn assert_all_responded(responses: &BTreeMap<String, Value>, code: i32) {
    let ids: Vec<_> = (1..=LONG).map(|id| id.to_string()).chain(["\"short\"".to_owned()]).collect();
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(responses.keys().collect::<Vec<_>>(), sorted.iter().collect::<Vec<_>>());
    for id in &ids[..LONG] {
        assert_eq!(responses[id]["error"]["code"], code, "{}", responses[id]);
    }
}

/// As `assert_all_responded`, and the short request was completed.
fn assert_short_completed(responses: &BTreeMap<String, Value>, code: i32) {
    assert_all_responded(responses, code);
    assert_eq!(responses["\"short\""]["result"]["finishReason"], "length", "{}", responses["\"short\""]);
}

/// A stdio program with all requests running, and the pid of its worker.
fn busy(transport: Transport, parent: Option<u32>) -> (StdioClient, u32) {
    let mut pipes = StdioClient::new(transport, &[]);
    let send = |pipes: &mut StdioClient, message: &str| {
        let framed = pipes.frame(message);
        pipes.write(&framed);
    };
    if let Some(parent) = parent {
        send(&mut pipes, &call("0", "initialize", json!({ "processId": parent })));
        pipes.receive();
    }
    send(&mut pipes, &call("1", "models/load", json!({ "model": "embedded" })));
    pipes.receive();
    send(&mut pipes, &call("1", "status", "{}"));
    let Received::Message(status) = pipes.receive() else { panic!("closed") };
    let worker = status["result"]["models"][0]["workerPid"].as_u64().expect("loaded") as u32;
    (1..=LONG).map(long).chain([short()]).for_each(|message| send(&mut pipes, &message));
    // Waits until all long requests generate.
    let mut started = [false; LONG];
    while started != [true; LONG] {
        let Received::Message(message) = pipes.receive() else { panic!("closed") };
        if let Some(id) = message["params"]["token"].as_u64() {
            started[id as usize - 1] = true;
        }
        assert_ne!(message["id"], "short", "the short request ended before the long ones started");
    }
    (pipes, worker)
}

fn assert_all_exited(pipes: &mut StdioClient, worker: u32, since: Instant) {
    pipes.program.wait();
    exits_within(worker, since, LIMIT);
    assert!(since.elapsed() < LIMIT, "the program exited after {:?}", since.elapsed());
}

#[test]
fn a_signal_lets_short_requests_finish_and_fails_the_others() {
    let _exclusive = exclusive();
    for stop in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (mut pipes, worker) = busy(Transport::Lines, None);
        let start = Instant::now();
        signal(pipes.program.child.id(), stop);
        assert_short_completed(&responses(|| pipes.receive()).0, -32065);
        assert_all_exited(&mut pipes, worker, start);
        assert!(pipes.program.wait().success());
    }
}

#[test]
fn exit_and_end_of_input_let_short_requests_finish_and_cancel_the_others() {
    let _exclusive = exclusive();
    for exit in [false, true] {
        let (mut pipes, worker) = busy(Transport::Headers, Some(std::process::id()));
        let start = Instant::now();
        if exit {
            let framed = [call("9", "shutdown", "null"), r#"{"jsonrpc":"2.0","method":"exit"}"#.into()].map(|text| pipes.frame(&text));
            pipes.write(&framed.concat());
        } else {
            pipes.close();
        }
        let (mut responses, _) = responses(|| pipes.receive());
        assert_eq!(responses.remove("9").is_some(), exit);
        assert_short_completed(&responses, -32800);
        assert_all_exited(&mut pipes, worker, start);
        assert!(pipes.program.wait().success());
    }
}

#[test]
fn a_stopped_worker_does_not_delay_the_responses() {
    let _exclusive = exclusive();
    for (code, stop) in [(-32800, None), (-32065, Some(Signal::TERM))] {
        let (mut pipes, worker) = busy(Transport::Lines, None);
        signal(worker, Signal::STOP);
        let start = Instant::now();
        match stop {
            None => pipes.close(),
            Some(stop) => signal(pipes.program.child.id(), stop),
        }
        assert_all_responded(&responses(|| pipes.receive()).0, code);
        pipes.program.wait();
        exits_within(worker, start, LIMIT + Duration::from_secs(1));
    }
}

#[test]
fn the_exit_of_the_parent_process_ends_the_program() {
    let _exclusive = exclusive();
    let mut parent = Command::new("sleep").arg("600").spawn().unwrap();
    let (mut pipes, worker) = busy(Transport::Headers, Some(parent.id()));
    let start = Instant::now();
    parent.kill().unwrap();
    assert_all_exited(&mut pipes, worker, start);
    parent.wait().unwrap();
}

#[test]
fn a_worker_exits_when_its_front_is_killed() {
    let _exclusive = exclusive();
    let (mut pipes, worker) = busy(Transport::Lines, None);
    let start = Instant::now();
    signal(pipes.program.child.id(), Signal::KILL);
    assert_all_exited(&mut pipes, worker, start);
}

#[test]
fn a_server_closes_its_connections_and_removes_its_token_file() {
    let _exclusive = exclusive();
    let mut server = Server::new();
    // One client reads; the other neither reads nor closes its connection.
    let (mut socket, _silent) = (server.connect(), server.raw());
    socket.send(Message::text(call("0", "models/load", json!({ "model": "embedded" })))).unwrap();
    receive(&mut socket);
    socket.send(Message::text(call("0", "status", "{}"))).unwrap();
    let Received::Message(status) = receive(&mut socket) else { panic!("closed") };
    let worker = status["result"]["models"][0]["workerPid"].as_u64().expect("loaded") as u32;
    (1..=LONG).map(long).chain([short()]).for_each(|message| socket.send(Message::text(message)).unwrap());
    // The short request runs before the signal.
    while !matches!(receive(&mut socket), Received::Message(message) if message["params"]["token"] == "short") {}
    let start = Instant::now();
    signal(server.program.child.id(), Signal::TERM);
    let (responses, code) = responses(|| receive(&mut socket));
    assert_short_completed(&responses, -32065);
    assert_eq!(code, Some(1001));
    drop(socket);
    assert!(server.program.wait().success());
    exits_within(worker, start, LIMIT);
    assert!(!server.token_file.exists());
    // It waited for the silent client only a limited time.
    assert!(start.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn the_token_file_of_a_killed_server_is_removed_by_the_next_server() {
    let _exclusive = exclusive();
    let server = Server::new();
    let home = server.token_file.parent().and_then(|folder| folder.parent()).expect("in a folder of the runtime directory");
    let pid = server.program.child.id();
    signal(pid, Signal::KILL);
    while is_running(pid) {}
    assert!(server.token_file.exists(), "nothing to remove");
    let mut next = Command::new(env!("CARGO_BIN_EXE_souffleur"))
        .args(["serve", "--port", "0"])
        .env("XDG_RUNTIME_DIR", home)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(next.stdout.take().unwrap()).lines();
    let own = lines.nth(1).expect("the line with the token file").unwrap();
    let has_own = own.strip_prefix("token in ").is_some_and(|path| Path::new(path).exists());
    let is_left = server.token_file.exists();
    next.kill().unwrap();
    next.wait().unwrap();
    assert_eq!((has_own, is_left), (true, false));
}
