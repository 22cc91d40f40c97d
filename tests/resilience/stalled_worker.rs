//! A worker stopped by SIGSTOP is reported as stalled, then replaced, and its streams continue.

use crate::{
    program::{Received, Server, Socket, call, read_head, receive},
    support::{HANG, exclusive, exits_within, signal},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Message;

/// The `--stall-limit`: how long a decoder may not respond.
const STALL_LIMIT: Duration = Duration::from_secs(4);
const STREAMS: usize = 4;

/// The status and body of `/health`, with and without a token.
fn health(server: &Server, token: Option<&str>) -> (u16, Value) {
    let mut stream = server.dial();
    let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET /health HTTP/1.1\r\nHost: {}\r\n{bearer}Connection: close\r\n\r\n", server.address).unwrap();
    let status = read_head(&mut stream)[9..12].parse().unwrap();
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

fn stream(id: usize) -> String {
    let seeded = json!({ "temperature": 0.9, "seed": id });
    let mut params = if id.is_multiple_of(2) { json!({}) } else { seeded };
    params["prompt"] = json!(format!("# text {id}\ndef f(x):\n"));
    params["maxTokens"] = json!(400);
    params["logitBias"] = json!({ "0": -100 });
    params["partialResultToken"] = json!(id);
    call(&id.to_string(), "complete", params)
}

fn message(socket: &mut Socket) -> Value {
    match receive(socket) {
        Received::Message(message) => message,
        Received::Closed(code) => panic!("closed ({code:?})"),
    }
}

/// Reads until this many streams have ended.
fn read_streams(socket: &mut Socket, texts: &mut BTreeMap<u64, String>, ends: usize) {
    let mut ended = 0;
    while ended < ends {
        let message = message(socket);
        match (message["params"]["token"].as_u64(), message["params"]["value"]["text"].as_str()) {
            (Some(id), Some(partial)) => *texts.entry(id).or_default() += partial,
            _ => {
                assert_eq!(message["result"]["finishReason"], "length", "{message}");
                ended += 1;
            }
        }
    }
}

#[test]
fn a_stopped_worker_is_reported_and_replaced_and_its_streams_continue() {
    let _exclusive = exclusive();
    let server = Server::with(&["--stall-limit", &STALL_LIMIT.as_secs().to_string()]);
    assert_eq!(health(&server, None), (200, json!({ "status": "ok" })));
    let mut socket = server.connect();
    let mut reference = BTreeMap::new();
    for id in 0..STREAMS {
        socket.send(Message::text(stream(id))).unwrap();
    }
    read_streams(&mut socket, &mut reference, STREAMS);
    let (status, full) = health(&server, Some(&server.token));
    let model = &full["models"][0];
    assert_eq!((status, &full["status"], &model["state"], &model["restarts"]), (200, &json!("ok"), &json!("ready"), &json!(0)));
    assert!(model["decoder"]["steps"].as_u64() > Some(0) && model["decoder"]["lastStepMs"].is_u64(), "{full}");
    let worker = model["workerPid"].as_u64().expect("loaded") as u32;

    let mut texts = BTreeMap::new();
    for id in 0..STREAMS {
        socket.send(Message::text(stream(id))).unwrap();
    }
    while texts.len() < STREAMS {
        let message = message(&mut socket);
        let id = message["params"]["token"].as_u64().unwrap_or_else(|| panic!("ended too early: {message}"));
        *texts.entry(id).or_insert_with(String::new) += message["params"]["value"]["text"].as_str().unwrap();
    }
    let stopped = Instant::now();
    signal(worker, Signal::STOP);
    // Each status with the time it was first seen.
    let mut seen = Vec::<(String, Duration)>::new();
    while seen.last().is_none_or(|(status, _)| status != "ok") || seen.len() == 1 {
        let (code, body) = health(&server, None);
        let status = body["status"].as_str().unwrap().to_owned();
        assert_eq!(code, if status == "ok" { 200 } else { 503 });
        if seen.last().is_none_or(|(last, _)| *last != status) {
            seen.push((status, stopped.elapsed()));
        }
        assert!(stopped.elapsed() < HANG, "{seen:?}");
    }
    eprintln!("/health after the stop: {seen:?}");
    assert!(seen.iter().any(|(status, at)| status == "stalled" && *at < STALL_LIMIT), "{seen:?}");
    exits_within(worker, stopped, HANG);
    read_streams(&mut socket, &mut texts, STREAMS);
    assert_eq!(texts, reference);
    let (_, full) = health(&server, Some(&server.token));
    let model = &full["models"][0];
    assert_eq!((&model["state"], &model["restarts"]), (&json!("ready"), &json!(1)));
    assert_eq!(model["deaths"][0]["cause"], "its decoder did not respond for 4 s");
    assert_ne!(model["workerPid"], json!(worker));
}
