//! An idle program does not wake up, and a model that is idle for its keep-alive time is unloaded.

use crate::{
    program::{Received, Server, StdioClient, Transport, call, receive},
    runtime::{MODEL, TestRuntime, greedy, text},
    support::{HANG, exclusive, exits_within, is_running},
};
use serde_json::{Value, json};
use souffleur::actors::{FinishReason, ModelState, Settings};
use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Message;

const OBSERVED: Duration = Duration::from_secs(4);
/// The thread of the actix-web server, and the wake-ups that its timers may cause.
const HTTP_THREAD: &str = "actix-rt|system";
const HTTP_WAKE_UPS_PER_SECOND: f64 = 4.5;

/// The voluntary context switches of each thread so far: one for every wake-up.
fn context_switches(pid: u32) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process exists");
    let of = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).expect("the process exists");
        let name = status.lines().next().expect("a name line").trim_start_matches("Name:").trim().to_owned();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("a line of Linux");
        let count = count.trim().parse::<u64>().expect("a number");
        (format!("{name}/{}", task.file_name().display()), count)
    };
    threads.map(|task| of(task.expect("the process exists"))).collect()
}

/// The threads that woke up while nothing happened, with their number of wake-ups.
fn wake_ups(pids: [u32; 2]) -> Vec<(String, u64)> {
    // Lets the preceding work settle.
    thread::sleep(Duration::from_millis(500));
    let before = pids.map(context_switches);
    thread::sleep(OBSERVED);
    let after = pids.map(context_switches);
    let more = |(before, after): (&BTreeMap<String, u64>, BTreeMap<String, u64>)| {
        let count = |name: &String| before.get(name).copied().unwrap_or(0);
        after.into_iter().map(|(name, now)| (name.clone(), now - count(&name))).filter(|(_, more)| *more > 0).collect::<Vec<_>>()
    };
    before.iter().zip(after).flat_map(more).collect()
}

fn worker(status: &Value) -> u32 {
    status["result"]["models"][0]["workerPid"].as_u64().expect("loaded") as u32
}

const COMPLETE: &str = r#"{"prompt":"def add(a, b):","maxTokens":4}"#;

#[test]
fn an_idle_stdio_program_never_wakes_up() {
    let _exclusive = exclusive();
    let mut pipes = StdioClient::new(Transport::Headers, &[]);
    let ask = |pipes: &mut StdioClient, message: String| {
        let framed = pipes.frame(&message);
        pipes.write(&framed);
        let Received::Message(response) = pipes.receive() else { panic!("closed") };
        response
    };
    ask(&mut pipes, call("0", "initialize", json!({ "processId": std::process::id() })));
    ask(&mut pipes, call("1", "complete", COMPLETE));
    let worker = worker(&ask(&mut pipes, call("2", "status", "{}")));
    let wake_ups = wake_ups([pipes.program.child.id(), worker]);
    assert!(wake_ups.is_empty(), "in {OBSERVED:?}: {wake_ups:?}");
}

#[test]
fn an_idle_server_wakes_up_only_for_http_timers() {
    let _exclusive = exclusive();
    let server = Server::new();
    let mut socket = server.connect();
    let mut ask = |message: String| {
        socket.send(Message::text(message)).unwrap();
        let Received::Message(response) = receive(&mut socket) else { panic!("closed") };
        response
    };
    ask(call("1", "complete", COMPLETE));
    let worker = worker(&ask(call("2", "status", "{}")));
    let wake_ups = wake_ups([server.program.child.id(), worker]);
    // actix-web updates its `Date` header every half second.
    let (http, ours): (Vec<_>, Vec<_>) = wake_ups.into_iter().partition(|(thread, _)| thread.starts_with(HTTP_THREAD));
    assert!(ours.is_empty(), "in {OBSERVED:?}: {ours:?}");
    let per_second = http.iter().map(|(_, more)| more).sum::<u64>() as f64 / OBSERVED.as_secs_f64();
    assert!(per_second <= HTTP_WAKE_UPS_PER_SECOND, "in {OBSERVED:?}: {http:?}");
}

#[test]
fn a_model_without_requests_for_its_keep_alive_time_is_unloaded() {
    let _exclusive = exclusive();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let keep_alive = Duration::from_millis(300);
        let runtime =
            TestRuntime::from_config(TestRuntime::config(Settings::default(), Vec::new()).with_keep_alive(Some(keep_alive)).unwrap());
        // Taken before the request: the worker is idle some time before the client has read the output.
        let idle = Instant::now();
        assert_eq!(runtime.run(greedy(text("def add(a, b):"), 3)).await.reason(), FinishReason::Length);
        let pid = runtime.models().await[0].worker_pid.expect("loaded by the request");
        exits_within(pid, idle, HANG);
        assert!(idle.elapsed() >= keep_alive, "after {:?}", idle.elapsed());
        while runtime.models().await[0].state != ModelState::Unloaded {
            assert!(idle.elapsed() < HANG);
        }
        assert_eq!(runtime.run(greedy(text("def add(a, b):"), 3)).await.reason(), FinishReason::Length);
        assert!(runtime.models().await[0].worker_pid.is_some_and(|next| next != pid && is_running(next)), "{MODEL} is loaded again");
    });
}
