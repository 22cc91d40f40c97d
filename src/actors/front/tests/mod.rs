//! Tests of the supervisor, the ModelActor and the worker session, with fake workers and a paused clock: no result depends
//! on real time.

use super::{Reader, Runtime};
use crate::actors::{Answer, End, Error, FinishReason, ModelState, ModelStatus, Prompt, Question, Request, Sampling};
use crate::config::{Config, Isolation, Limits, Model, RestartLimit};
use crate::models::{self, ModelSource};
use fake_worker::{FakeWorkers, LOAD_TIME, STEP_TIME, StartPlan, expected_text, model_info};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

mod deaths;
pub(in crate::actors) mod fake_worker;
mod loads;
mod random_operations;

const GRACE: Duration = Duration::from_secs(1);

fn config() -> Config {
    let model = |name: &str| Model { name: name.into(), source: ModelSource::Embedded };
    // A program that does not exist: the tests launch fake workers instead.
    let isolation = Isolation::Process { program: "/nowhere/souffleur".into(), arguments: Vec::new() };
    let limits = Limits { requests_in_flight: 16, ..Limits::default() };
    let restarts = RestartLimit { deaths: 3, period: Duration::from_secs(30) };
    let config = Config::new(vec![model("a"), model("b")], isolation).unwrap();
    config.with_limits(limits).unwrap().with_restarts(restarts).unwrap()
}

/// Runs a test with its own runtime and fake workers. Checks afterwards that no worker runs and no request permit is held.
fn with_runtime(config: Config, plans: &[StartPlan], test: impl AsyncFnOnce(&Runtime, &FakeWorkers)) {
    let paused = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    actix::System::with_tokio_rt(paused).block_on(async move {
        let workers = Arc::new(FakeWorkers::default());
        workers.plans.lock().unwrap().extend_from_slice(plans);
        let runtime = Runtime::assemble(config, workers.launch());
        // One hour of the paused clock: more than any test needs.
        timeout(Duration::from_secs(3600), test(&runtime, &workers)).await.expect("the test hangs");
        runtime.shutdown(Duration::ZERO).await;
        assert_eq!(workers.running.load(Ordering::SeqCst), 0, "a worker outlived its runtime");
        assert_eq!(runtime.status().await.requests_in_flight, 0, "a permit was lost");
    });
}

fn request(prompt: &str, tokens_max: u32) -> Request {
    let (prompt, sampling) = (Prompt::Text(prompt.into()), Sampling::default());
    Request { model: "a".into(), prompt, sampling, stop: Vec::new(), tokens_max, logprobs: None }
}

async fn read_to_end(mut reader: Reader) -> (String, End) {
    let mut text = String::new();
    let (mut seq, mut tokens) = (0, 0);
    loop {
        let update = reader.next().await;
        // A fake worker samples one token per step.
        assert_eq!(update.seq, seq, "updates are contiguous");
        assert!(
            update.tokens.iter().enumerate().all(|(i, sampled)| sampled.token as usize == tokens + i),
            "no token is missing, repeated or out of order"
        );
        seq += update.tokens.len() as u64;
        tokens += update.tokens.len();
        text += &update.text;
        if let Some(end) = update.end {
            return (text, end);
        }
    }
}

/// Reads at least this many tokens.
async fn read_tokens(reader: &mut Reader, tokens: usize) {
    let mut seen = 0;
    while seen < tokens {
        let update = reader.next().await;
        assert_eq!(update.end, None);
        seen += update.tokens.len();
    }
}

fn reason(end: &End) -> Option<FinishReason> {
    match end {
        End::Done { reason, .. } => Some(*reason),
        End::Failed(_) => None,
    }
}

async fn first_model_status(runtime: &Runtime) -> ModelStatus {
    runtime.models().await.remove(0)
}

fn assert_complete(tokens: u32, (text_read, end): &(String, End)) {
    assert_eq!(*text_read, expected_text(tokens));
    assert_eq!(reason(end), Some(FinishReason::Length), "{end:?}");
}

#[test]
fn after_its_end_a_stream_returns_the_end_again() {
    with_runtime(config(), &[], async |runtime, _| {
        let mut reader = runtime.complete(request("", 5)).unwrap();
        let second_reader = reader.clone();
        assert_complete(5, &read_to_end(second_reader).await);
        let update = reader.next().await;
        assert_eq!((update.seq, update.text, update.tokens.len()), (0, expected_text(5), 5));
        let repeated = reader.next().await;
        assert_eq!((repeated.seq, repeated.text, repeated.end), (5, String::new(), update.end));
        let status = runtime.status().await;
        assert_eq!((status.requests_in_flight, status.models[0].in_flight, status.models[0].state), (0, 0, ModelState::Ready));
        assert_eq!(status.models[0].decoder.as_ref().map(|decoder| decoder.steps), Some(5));
        assert_eq!((status.models[1].state, &status.models[1].decoder), (ModelState::Unloaded, &None));
    });
}

#[test]
fn dropping_the_last_reader_cancels_and_abandon_waits_for_the_end_of_the_computation() {
    with_runtime(config(), &[], async |runtime, workers| {
        let mut reader = runtime.complete(request("", 1000)).unwrap();
        read_tokens(&mut reader, 3).await;
        drop(reader.clone());
        read_tokens(&mut reader, 1).await;
        let end = reader.abandon().wait().await;
        assert!(
            matches!(&end, End::Done { reason: FinishReason::Cancelled, usage, .. } if (4..8).contains(&usage.completion_tokens)),
            "{end:?}"
        );
        assert_eq!(workers.received(), ["generate 1", "cancel 1"]);
        // Without the `Completion` that `abandon` returns.
        let mut reader = runtime.complete(request("", 1000)).unwrap();
        read_tokens(&mut reader, 3).await;
        drop(reader);
        while first_model_status(runtime).await.in_flight > 0 {
            sleep(STEP_TIME).await;
        }
        assert_eq!(workers.received(), ["generate 2", "cancel 2"]);
    });
}

#[test]
fn a_queued_request_is_cancelled_immediately() {
    with_runtime(config(), &[], async |runtime, workers| {
        let start = Instant::now();
        let end = runtime.complete(request("", 5)).unwrap().abandon().wait().await;
        assert_eq!(reason(&end), Some(FinishReason::Cancelled));
        assert!(start.elapsed() < LOAD_TIME);
        assert_complete(2, &read_to_end(runtime.complete(request("", 2)).unwrap()).await);
        assert_eq!(workers.received(), ["generate 2"]);
    });
}

#[test]
fn a_failed_load_does_not_count_as_a_death() {
    let error = Error::Model(models::Error::Memory { needed: 2, free: 1 });
    with_runtime(config(), &[StartPlan::FailLoad(error.clone()), StartPlan::FailLoad(error.clone())], async |runtime, workers| {
        let reader = runtime.complete(request("", 1)).unwrap();
        let question = runtime.ask("a", Question::Tokenize("x".into()));
        let (ended, asked, loaded) = tokio::join!(read_to_end(reader), question, runtime.load("a", |_, _| {}));
        assert_eq!((ended.1, asked, loaded), (End::Failed(error.clone()), Err(error.clone()), Err(error.clone())));
        let status = first_model_status(runtime).await;
        assert_eq!((status.state, status.restarts), (ModelState::Unloaded, 0));
        assert_eq!(read_to_end(runtime.complete(request("", 1)).unwrap()).await.1, End::Failed(error));
        assert_complete(1, &read_to_end(runtime.complete(request("", 1)).unwrap()).await);
        assert_eq!(workers.started.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn a_worker_with_another_wire_version_is_refused() {
    with_runtime(config(), &[StartPlan::Hello(99)], async |runtime, _| {
        let (_, end) = read_to_end(runtime.complete(request("", 1)).unwrap()).await;
        assert!(matches!(&end, End::Failed(Error::Internal(cause)) if cause.contains("version 99")), "{end:?}");
        assert_eq!(first_model_status(runtime).await.state, ModelState::Unloaded);
    });
}

#[test]
fn concurrent_loads_share_one_worker_and_its_progress() {
    with_runtime(config(), &[StartPlan::DieLoading], async |runtime, workers| {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let loads =
            tokio::join!(runtime.load("a", |done, total| first.push((done, total))), runtime.load("a", |done, _| second.push(done)));
        assert_eq!(loads, (Ok(model_info()), Ok(model_info())));
        // The first worker died at the end of its load, so the progress restarts at 0.
        assert_eq!((first, second), (vec![(1, 2), (0, 0), (1, 2), (2, 2)], vec![1, 0, 1, 2]));
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        assert_eq!(workers.started.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn unload_ends_the_worker_and_fails_its_requests() {
    with_runtime(config(), &[], async |runtime, workers| {
        let stream = runtime.complete(request("", 1000)).unwrap();
        read_tokens(&mut stream.clone(), 1).await;
        let unloading = Error::Unloading { model: "a".into() };
        let (first, second, end) = tokio::join!(runtime.unload("a"), runtime.unload("a"), read_to_end(stream));
        assert_eq!((first, second, end.1), (Ok(()), Ok(()), End::Failed(unloading)));
        assert_eq!(workers.running.load(Ordering::SeqCst), 0);
        assert_eq!(first_model_status(runtime).await.state, ModelState::Unloaded);
        assert_eq!(runtime.unload("a").await, Ok(()));
        assert_complete(2, &read_to_end(runtime.complete(request("", 2)).unwrap()).await);
    });
}

#[test]
fn an_idle_model_is_not_pinged_and_is_unloaded_after_its_keep_alive() {
    let minute = Duration::from_secs(60);
    with_runtime(config().with_keep_alive(Some(minute)).unwrap(), &[], async |runtime, workers| {
        assert_complete(2, &read_to_end(runtime.complete(request("", 2)).unwrap()).await);
        sleep(minute - STEP_TIME).await;
        assert_eq!(first_model_status(runtime).await.state, ModelState::Ready);
        assert_eq!(workers.pings.load(Ordering::SeqCst), 0);
        sleep(STEP_TIME * 2).await;
        assert_eq!((first_model_status(runtime).await.state, workers.running.load(Ordering::SeqCst)), (ModelState::Unloaded, 0));
        assert_complete(2, &read_to_end(runtime.complete(request("", 2)).unwrap()).await);
    });
}

#[test]
fn a_slow_decoder_that_responds_is_not_stalled() {
    with_runtime(config(), &[], async |runtime, workers| {
        assert_complete(100, &read_to_end(runtime.complete(request("slow", 100)).unwrap()).await);
        assert_eq!(first_model_status(runtime).await.restarts, 0);
        // One ping every 5 s; a token takes 1 s.
        assert_eq!(workers.pings.load(Ordering::SeqCst), 20);
    });
}

#[test]
fn questions_are_answered_or_fail_when_their_worker_dies() {
    with_runtime(config(), &[], async |runtime, _| {
        assert_eq!(runtime.ask("a", Question::Tokenize("hi".into())).await, Ok(Answer::Tokens(vec![104, 105])));
        let lost = Error::WorkerLost { model: "a".into(), cause: "its thread ended".into() };
        assert_eq!(runtime.ask("a", Question::Tokenize("die".into())).await, Err(lost));
        assert_eq!(runtime.ask("a", Question::Tokenize("x".into())).await, Ok(Answer::Tokens(vec![120])));
    });
}

#[test]
fn show_does_not_load_the_weights() {
    with_runtime(config(), &[], async |runtime, workers| {
        assert_eq!(runtime.show("a").await.unwrap().weight_bytes, 1);
        assert_eq!((first_model_status(runtime).await.state, workers.running.load(Ordering::SeqCst)), (ModelState::Unloaded, 0));
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        assert_eq!(runtime.show("a").await, Ok(model_info()));
        assert_eq!(workers.started.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn requests_over_the_limit_or_for_an_unknown_model_are_refused_immediately() {
    with_runtime(config(), &[], async |runtime, _| {
        let readers: Vec<_> = (0..16).map(|_| runtime.complete(request("", 3)).unwrap()).collect();
        let overloaded = Error::Overloaded { limit: 16 };
        assert_eq!(runtime.complete(request("", 3)).err(), Some(overloaded.clone()));
        assert_eq!(runtime.ask("a", Question::Tokenize(String::new())).await, Err(overloaded));
        for reader in readers {
            assert_complete(3, &read_to_end(reader).await);
            // The permit is released before the end can be read.
            drop(runtime.complete(request("", 1)).unwrap());
        }
        let unknown = Error::UnknownModel { name: "c".into(), known: vec!["a".into(), "b".into()] };
        assert_eq!(runtime.complete(Request { model: "c".into(), ..request("", 1) }).err(), Some(unknown.clone()));
        assert_eq!(runtime.load("c", |_, _| {}).await, Err(unknown));
    });
}

#[test]
fn shutdown_waits_for_requests_in_flight_and_cancels_those_that_take_longer() {
    with_runtime(config(), &[], async |runtime, workers| {
        let short = runtime.complete(request("", 20)).unwrap();
        let long = runtime.complete(request("", 1_000_000)).unwrap();
        read_tokens(&mut short.clone(), 1).await;
        let start = Instant::now();
        let (short, long, ()) = tokio::join!(read_to_end(short.clone()), read_to_end(long), async {
            runtime.shutdown(GRACE).await;
            assert_eq!(workers.running.load(Ordering::SeqCst), 0);
        });
        assert!((GRACE..GRACE * 2).contains(&start.elapsed()));
        assert_complete(20, &short);
        assert_eq!(long.1, End::Failed(Error::ShuttingDown));
        assert_eq!(runtime.complete(request("", 1)).err(), Some(Error::ShuttingDown));
        runtime.ended().await;
    });
}

#[test]
fn a_runtime_works_on_any_executor_and_ends_with_its_last_clone() {
    let config = config().with_restarts(RestartLimit { deaths: 0, period: GRACE }).unwrap();
    let runtime = Runtime::start(config).unwrap();
    // This executor has no timer and no I/O driver; the actors' thread has its own.
    let caller = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let end = caller.block_on(read_to_end(runtime.clone().complete(request("", 1)).unwrap())).1;
    assert!(matches!(&end, End::Failed(Error::ModelFailed { cause, .. }) if cause.starts_with("could not be started: ")), "{end:?}");
    let ended = runtime.ended();
    drop(runtime);
    caller.block_on(ended);
}

/// Compiles only if the futures can be awaited on a multi-threaded executor.
#[test]
fn the_futures_of_a_runtime_are_send() {
    fn send<T: Send>(_: impl FnOnce(&'static Runtime) -> T) {}
    send(|runtime| runtime.ask("a", Question::Detokenize(Vec::new())));
    send(|runtime| runtime.load("a", |_, _| {}));
    send(|runtime| runtime.unload("a"));
    send(|runtime| runtime.show("a"));
    send(|runtime| runtime.status());
    send(|runtime| runtime.shutdown(GRACE));
    send(|runtime| runtime.ended());
}
