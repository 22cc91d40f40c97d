//! A sidecar with nothing to do does nothing, and one that had nothing to do for long gives its memory back.

use crate::{
    program::{Received, Server, StdioClient, Transport, call, receive},
    runtime::{House, MODEL, ask, text},
    support::{HANG, alone, ended_within, runs},
};
use serde_json::{Value, json};
use souffleur::actors::{FinishReason, ModelState, Settings};
use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Message;

const WATCH: Duration = Duration::from_secs(4);
/// The thread that actix-web serves on, and how often its clocks wake it.
const HTTP: &str = "actix-rt|system";
const HTTP_PER_SECOND: f64 = 4.5;

/// How often each thread of a process has gone to sleep so far, which is how often it woke.
fn switches(pid: u32) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let of = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).expect("it lives");
        let name = status.lines().next().expect("its name").trim_start_matches("Name:").trim().to_owned();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("Linux says");
        let count = count.trim().parse::<u64>().expect("a number");
        (format!("{name}/{}", task.file_name().display()), count)
    };
    threads.map(|task| of(task.expect("it lives"))).collect()
}

/// What woke up meanwhile, and how often.
fn woken(pids: [u32; 2]) -> Vec<(String, u64)> {
    // What was still on the way.
    thread::sleep(Duration::from_millis(500));
    let before = pids.map(switches);
    thread::sleep(WATCH);
    let after = pids.map(switches);
    let more = |(before, after): (&BTreeMap<String, u64>, BTreeMap<String, u64>)| {
        let count = |name: &String| before.get(name).copied().unwrap_or(0);
        after.into_iter().map(|(name, now)| (name.clone(), now - count(&name))).filter(|(_, more)| *more > 0).collect::<Vec<_>>()
    };
    before.iter().zip(after).flat_map(more).collect()
}

fn worker(status: &Value) -> u32 {
    status["result"]["models"][0]["workerPid"].as_u64().expect("it is loaded") as u32
}

const COMPLETE: &str = r#"{"prompt":"def add(a, b):","maxTokens":4}"#;

#[test]
fn an_idle_editors_child_is_never_woken() {
    let _alone = alone();
    let mut pipes = StdioClient::new(Transport::Headers, &[]);
    let ask = |pipes: &mut StdioClient, message: String| {
        let framed = pipes.frame(&message);
        pipes.write(&framed);
        let Received::Message(answer) = pipes.receive() else { panic!("it is there") };
        answer
    };
    ask(&mut pipes, call("0", "initialize", json!({ "processId": std::process::id() })));
    ask(&mut pipes, call("1", "complete", COMPLETE));
    let worker = worker(&ask(&mut pipes, call("2", "status", "{}")));
    let woken = woken([pipes.program.child.id(), worker]);
    assert!(woken.is_empty(), "in {WATCH:?}: {woken:?}");
}

#[test]
fn an_idle_server_is_woken_by_nothing_of_ours() {
    let _alone = alone();
    let server = Server::new();
    let mut socket = server.connect();
    let mut ask = |message: String| {
        socket.send(Message::text(message)).unwrap();
        let Received::Message(answer) = receive(&mut socket) else { panic!("it is there") };
        answer
    };
    ask(call("1", "complete", COMPLETE));
    let worker = worker(&ask(call("2", "status", "{}")));
    let woken = woken([server.program.child.id(), worker]);
    // actix-web's clock for the `Date` header, every half second, is its own.
    let (clock, ours): (Vec<_>, Vec<_>) = woken.into_iter().partition(|(thread, _)| thread.starts_with(HTTP));
    assert!(ours.is_empty(), "in {WATCH:?}: {ours:?}");
    let per_second = clock.iter().map(|(_, more)| more).sum::<u64>() as f64 / WATCH.as_secs_f64();
    assert!(per_second <= HTTP_PER_SECOND, "in {WATCH:?}: {clock:?}");
}

#[test]
fn a_model_that_nobody_asked_for_its_keep_alive_is_unloaded() {
    let _alone = alone();
    let clock = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    clock.block_on(async {
        let keep_alive = Duration::from_millis(300);
        let house = House::over(House::config(Settings::default(), Vec::new()).with_keep_alive(Some(keep_alive)).unwrap());
        // From before the answer: when its reader has it, its worker has been idle for a while.
        let idle = Instant::now();
        assert_eq!(house.run(ask(text("def add(a, b):"), 3)).await.reason(), FinishReason::Length);
        let pid = house.runtime.models().await[0].worker_pid.expect("it has just answered");
        ended_within(pid, idle, HANG);
        assert!(idle.elapsed() >= keep_alive, "after {:?}", idle.elapsed());
        while house.runtime.models().await[0].state != ModelState::Unloaded {
            assert!(idle.elapsed() < HANG);
        }
        assert_eq!(house.run(ask(text("def add(a, b):"), 3)).await.reason(), FinishReason::Length);
        assert!(house.runtime.models().await[0].worker_pid.is_some_and(|next| next != pid && runs(next)), "{MODEL} is loaded again");
    });
}
