//! Every way a program can end, in the middle of streams: each request is answered once, and nothing is left.

use crate::{
    program::{Received, Server, StdioClient, Transport, call, receive},
    support::{alone, ended_within, runs, signal},
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

/// Nothing is there any more after this.
const LIMIT: Duration = Duration::from_secs(2);
/// More tokens than can be computed before the end.
const LONG: usize = 8;

fn long(id: usize) -> String {
    let prompt = format!("# text {id}\n");
    let params = json!({ "prompt": prompt, "maxTokens": 2000, "logitBias": { "0": -100 }, "partialResultToken": id });
    call(&id.to_string(), "complete", params)
}

fn short() -> String {
    call("\"short\"", "complete", json!({ "prompt": "def add(a, b):", "maxTokens": 6, "partialResultToken": "short" }))
}

/// What is said up to the close: answers by their ids, each of which must come once.
fn answers(mut next: impl FnMut() -> Received) -> (BTreeMap<String, Value>, Option<u16>) {
    let mut answers = BTreeMap::new();
    loop {
        match next() {
            Received::Message(message) if message.get("method").is_some() => {}
            Received::Message(message) => {
                let again = answers.insert(message["id"].to_string(), message);
                assert!(again.is_none(), "a second answer: {again:?}");
            }
            Received::Closed(code) => return (answers, code),
        }
    }
}

/// Every request was answered, and those that were too long with this code.
fn all_answered(answers: &BTreeMap<String, Value>, code: i32) {
    let ids: Vec<_> = (1..=LONG).map(|id| id.to_string()).chain(["\"short\"".to_owned()]).collect();
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(answers.keys().collect::<Vec<_>>(), sorted.iter().collect::<Vec<_>>());
    for id in &ids[..LONG] {
        assert_eq!(answers[id]["error"]["code"], code, "{}", answers[id]);
    }
}

/// And the short one with its text.
fn all_ended(answers: &BTreeMap<String, Value>, code: i32) {
    all_answered(answers, code);
    assert_eq!(answers["\"short\""]["result"]["finishReason"], "length", "{}", answers["\"short\""]);
}

/// An editor's child with a full hand: its worker's process.
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
    let Received::Message(status) = pipes.receive() else { panic!("it is there") };
    let worker = status["result"]["models"][0]["workerPid"].as_u64().expect("it is loaded") as u32;
    (1..=LONG).map(long).chain([short()]).for_each(|message| send(&mut pipes, &message));
    // All of them are under way.
    let mut begun = [false; LONG];
    while begun != [true; LONG] {
        let Received::Message(message) = pipes.receive() else { panic!("it is there") };
        if let Some(id) = message["params"]["token"].as_u64() {
            begun[id as usize - 1] = true;
        }
        assert_ne!(message["id"], "short", "too short for this machine");
    }
    (pipes, worker)
}

fn nothing_left(pipes: &mut StdioClient, worker: u32, since: Instant) {
    pipes.program.wait();
    ended_within(worker, since, LIMIT);
    assert!(since.elapsed() < LIMIT, "the program took {:?}", since.elapsed());
}

#[test]
fn a_signal_lets_short_ones_finish_and_tells_the_others() {
    let _alone = alone();
    for stop in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (mut pipes, worker) = busy(Transport::Lines, None);
        let start = Instant::now();
        signal(pipes.program.child.id(), stop);
        all_ended(&answers(|| pipes.receive()).0, -32065);
        nothing_left(&mut pipes, worker, start);
        assert!(pipes.program.wait().success());
    }
}

#[test]
fn exit_and_the_end_of_input_let_short_ones_finish_and_cancel_the_others() {
    let _alone = alone();
    for exit in [false, true] {
        let (mut pipes, worker) = busy(Transport::Headers, Some(std::process::id()));
        let start = Instant::now();
        if exit {
            let framed = [call("9", "shutdown", "null"), r#"{"jsonrpc":"2.0","method":"exit"}"#.into()].map(|text| pipes.frame(&text));
            pipes.write(&framed.concat());
        } else {
            pipes.close();
        }
        let (mut answers, _) = answers(|| pipes.receive());
        assert_eq!(answers.remove("9").is_some(), exit);
        all_ended(&answers, -32800);
        nothing_left(&mut pipes, worker, start);
        assert!(pipes.program.wait().success());
    }
}

#[test]
fn a_worker_that_stands_still_keeps_no_answer_back() {
    let _alone = alone();
    for (code, stop) in [(-32800, None), (-32065, Some(Signal::TERM))] {
        let (mut pipes, worker) = busy(Transport::Lines, None);
        signal(worker, Signal::STOP);
        let start = Instant::now();
        match stop {
            None => pipes.close(),
            Some(stop) => signal(pipes.program.child.id(), stop),
        }
        all_answered(&answers(|| pipes.receive()).0, code);
        pipes.program.wait();
        ended_within(worker, start, LIMIT + Duration::from_secs(1));
    }
}

#[test]
fn a_parent_that_is_gone_is_noticed() {
    let _alone = alone();
    let mut parent = Command::new("sleep").arg("600").spawn().unwrap();
    let (mut pipes, worker) = busy(Transport::Headers, Some(parent.id()));
    let start = Instant::now();
    parent.kill().unwrap();
    nothing_left(&mut pipes, worker, start);
    parent.wait().unwrap();
}

#[test]
fn a_killed_front_takes_its_worker_along() {
    let _alone = alone();
    let (mut pipes, worker) = busy(Transport::Lines, None);
    let start = Instant::now();
    signal(pipes.program.child.id(), Signal::KILL);
    nothing_left(&mut pipes, worker, start);
}

#[test]
fn a_server_says_goodbye_and_takes_its_token_along() {
    let _alone = alone();
    let mut server = Server::new();
    // One that reads, and one that neither reads nor hangs up.
    let (mut socket, _silent) = (server.connect(), server.raw());
    socket.send(Message::text(call("0", "models/load", json!({ "model": "embedded" })))).unwrap();
    receive(&mut socket);
    socket.send(Message::text(call("0", "status", "{}"))).unwrap();
    let Received::Message(status) = receive(&mut socket) else { panic!("it is there") };
    let worker = status["result"]["models"][0]["workerPid"].as_u64().expect("it is loaded") as u32;
    (1..=LONG).map(long).chain([short()]).for_each(|message| socket.send(Message::text(message)).unwrap());
    // In hand before the signal.
    while !matches!(receive(&mut socket), Received::Message(message) if message["params"]["token"] == "short") {}
    let start = Instant::now();
    signal(server.program.child.id(), Signal::TERM);
    let (answers, code) = answers(|| receive(&mut socket));
    all_ended(&answers, -32065);
    assert_eq!(code, Some(1001));
    drop(socket);
    assert!(server.program.wait().success());
    ended_within(worker, start, LIMIT);
    assert!(!server.token_file.exists());
    // It waited for the silent one, but not for long.
    assert!(start.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn a_killed_servers_token_is_removed_by_the_next_server() {
    let _alone = alone();
    let server = Server::new();
    let home = server.token_file.parent().and_then(|folder| folder.parent()).expect("in a folder of the run-time directory");
    let pid = server.program.child.id();
    signal(pid, Signal::KILL);
    while runs(pid) {}
    assert!(server.token_file.exists(), "then there is nothing to remove");
    let mut next = Command::new(env!("CARGO_BIN_EXE_souffleur"))
        .args(["serve", "--port", "0"])
        .env("XDG_RUNTIME_DIR", home)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(next.stdout.take().unwrap()).lines();
    let own = lines.nth(1).expect("it says where its token is").unwrap();
    let has_own = own.strip_prefix("token in ").is_some_and(|path| Path::new(path).exists());
    let is_left = server.token_file.exists();
    next.kill().unwrap();
    next.wait().unwrap();
    assert_eq!((has_own, is_left), (true, false));
}
