//! Supervisor, ModelActor and life over a scripted worker and a paused clock: every wait is for an event.

use super::{
    Reader, Runtime,
    script::{LOAD, Plan, STEP, World, model_info, text},
};
use crate::actors::{Answer, End, Error, FinishReason, ModelState, ModelStatus, Prompt, Question, Request, Sampling};
use crate::config::{Config, Isolation, Limits, Model, RestartLimit};
use crate::models::{self, ModelSource, Settings};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

mod deaths;
mod loads;

const GRACE: Duration = Duration::from_secs(1);

pub(super) fn config() -> Config {
    let model = |name: &str| Model { name: name.into(), source: ModelSource::Embedded };
    Config {
        models: vec![model("a"), model("b")],
        embedded: None,
        isolation: Isolation::Thread,
        settings: Settings::default(),
        limits: Limits { requests_in_flight: 16, ..Limits::default() },
        restarts: RestartLimit { deaths: 3, period: Duration::from_secs(30) },
        keep_alive: None,
    }
}

/// Runs a test in a house of its own, and sees that nothing is left of it.
pub(super) fn house(config: Config, plans: &[Plan], test: impl AsyncFnOnce(&Runtime, &World)) {
    let paused = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    actix::System::with_tokio_rt(paused).block_on(async move {
        let world = Arc::new(World::default());
        world.plans.lock().unwrap().extend_from_slice(plans);
        let runtime = Runtime::assemble(config, world.launch());
        // Longer than any of them waits on its paused clock: what hangs fails.
        timeout(Duration::from_secs(3600), test(&runtime, &world)).await.expect("the test hangs");
        runtime.shutdown(Duration::ZERO).await;
        assert_eq!(world.running.load(Ordering::SeqCst), 0, "a worker outlived its house");
        assert_eq!(runtime.status().await.requests_in_flight, 0, "a ticket is lost");
    });
}

pub(super) fn request(prompt: &str, tokens_max: u32) -> Request {
    let (prompt, sampling) = (Prompt::Text(prompt.into()), Sampling::default());
    Request { model: "a".into(), prompt, sampling, stop: Vec::new(), tokens_max, logprobs: None }
}

async fn read(mut reader: Reader) -> (String, End) {
    let mut text = String::new();
    let (mut seq, mut tokens) = (0, 0);
    loop {
        let news = reader.next().await;
        assert_eq!(news.seq, seq, "pieces follow each other");
        assert!(news.tokens.iter().enumerate().all(|(i, sampled)| sampled.token as usize == tokens + i), "each token once, in order");
        seq += news.tokens.len() as u64;
        tokens += news.tokens.len();
        text += &news.text;
        if let Some(end) = news.end {
            return (text, end);
        }
    }
}

async fn until(reader: &mut Reader, tokens: usize) {
    let mut seen = 0;
    while seen < tokens {
        let news = reader.next().await;
        assert_eq!(news.end, None);
        seen += news.tokens.len();
    }
}

fn reason(end: &End) -> Option<FinishReason> {
    match end {
        End::Done { reason, .. } => Some(*reason),
        End::Failed(_) => None,
    }
}

async fn model(runtime: &Runtime) -> ModelStatus {
    runtime.models().await.remove(0)
}

fn whole(tokens: u32, (text_read, end): &(String, End)) {
    assert_eq!(*text_read, text(tokens));
    assert_eq!(reason(end), Some(FinishReason::Length), "{end:?}");
}

#[test]
fn a_stream_is_read_to_its_end_and_the_end_stays() {
    house(config(), &[], async |runtime, _| {
        let mut reader = runtime.complete(request("", 5)).unwrap();
        let late = reader.clone();
        whole(5, &read(late).await);
        let news = reader.next().await;
        assert_eq!((news.seq, news.text, news.tokens.len()), (0, text(5), 5));
        let again = reader.next().await;
        assert_eq!((again.seq, again.text, again.end), (5, String::new(), news.end));
        let status = runtime.status().await;
        assert_eq!((status.requests_in_flight, status.models[0].in_flight, status.models[0].state), (0, 0, ModelState::Ready));
        assert_eq!(status.models[0].decoder.as_ref().map(|decoder| decoder.steps), Some(5));
        assert_eq!((status.models[1].state, &status.models[1].decoder), (ModelState::Unloaded, &None));
    });
}

#[test]
fn the_last_reader_that_leaves_cancels_and_its_ending_says_when_compute_stopped() {
    house(config(), &[], async |runtime, world| {
        let mut reader = runtime.complete(request("", 1000)).unwrap();
        until(&mut reader, 3).await;
        drop(reader.clone());
        until(&mut reader, 1).await;
        let end = reader.abandon().wait().await;
        assert!(
            matches!(&end, End::Done { reason: FinishReason::Cancelled, usage, .. } if (4..8).contains(&usage.completion_tokens)),
            "{end:?}"
        );
        assert_eq!(world.heard(), ["generate 1", "cancel 1"]);
        // Without an ending too.
        let mut reader = runtime.complete(request("", 1000)).unwrap();
        until(&mut reader, 3).await;
        drop(reader);
        while model(runtime).await.in_flight > 0 {
            sleep(STEP).await;
        }
        assert_eq!(world.heard(), ["generate 2", "cancel 2"]);
    });
}

#[test]
fn what_no_worker_has_yet_is_cancelled_at_once() {
    house(config(), &[], async |runtime, world| {
        let start = Instant::now();
        let end = runtime.complete(request("", 5)).unwrap().abandon().wait().await;
        assert_eq!(reason(&end), Some(FinishReason::Cancelled));
        assert!(start.elapsed() < LOAD);
        whole(2, &read(runtime.complete(request("", 2)).unwrap()).await);
        assert_eq!(world.heard(), ["generate 2"]);
    });
}

#[test]
fn a_load_that_fails_is_no_death() {
    let error = Error::Model(models::Error::Memory { needed: 2, free: 1 });
    house(config(), &[Plan::Refuse(error.clone()), Plan::Refuse(error.clone())], async |runtime, world| {
        let reader = runtime.complete(request("", 1)).unwrap();
        let question = runtime.ask("a", Question::Tokenize("x".into()));
        let (ended, asked, loaded) = tokio::join!(read(reader), question, runtime.load("a", |_, _| {}));
        assert_eq!((ended.1, asked, loaded), (End::Failed(error.clone()), Err(error.clone()), Err(error.clone())));
        let status = model(runtime).await;
        assert_eq!((status.state, status.restarts), (ModelState::Unloaded, 0));
        assert_eq!(read(runtime.complete(request("", 1)).unwrap()).await.1, End::Failed(error));
        whole(1, &read(runtime.complete(request("", 1)).unwrap()).await);
        assert_eq!(world.started.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn a_worker_of_another_version_is_refused() {
    house(config(), &[Plan::Hello(99)], async |runtime, _| {
        let (_, end) = read(runtime.complete(request("", 1)).unwrap()).await;
        assert!(matches!(&end, End::Failed(Error::Internal(cause)) if cause.contains("version 99")), "{end:?}");
        assert_eq!(model(runtime).await.state, ModelState::Unloaded);
    });
}

#[test]
fn two_loads_are_one_and_both_hear_its_progress() {
    house(config(), &[Plan::DieLoading], async |runtime, world| {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        let loads = tokio::join!(runtime.load("a", |done, total| one.push((done, total))), runtime.load("a", |done, _| other.push(done)));
        assert_eq!(loads, (Ok(model_info()), Ok(model_info())));
        // The first worker died at the end of its load, so the next one starts over.
        assert_eq!((one, other), (vec![(1, 2), (0, 0), (1, 2), (2, 2)], vec![1, 0, 1, 2]));
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        assert_eq!(world.started.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn unloading_ends_the_worker_and_says_so_to_its_requests() {
    house(config(), &[], async |runtime, world| {
        let stream = runtime.complete(request("", 1000)).unwrap();
        until(&mut stream.clone(), 1).await;
        let unloading = Error::Unloading { model: "a".into() };
        let (first, second, end) = tokio::join!(runtime.unload("a"), runtime.unload("a"), read(stream));
        assert_eq!((first, second, end.1), (Ok(()), Ok(()), End::Failed(unloading)));
        assert_eq!(world.running.load(Ordering::SeqCst), 0);
        assert_eq!(model(runtime).await.state, ModelState::Unloaded);
        assert_eq!(runtime.unload("a").await, Ok(()));
        whole(2, &read(runtime.complete(request("", 2)).unwrap()).await);
    });
}

#[test]
fn an_idle_model_is_unloaded_after_its_keep_alive_and_never_woken_before() {
    let minute = Duration::from_secs(60);
    house(Config { keep_alive: Some(minute), ..config() }, &[], async |runtime, world| {
        whole(2, &read(runtime.complete(request("", 2)).unwrap()).await);
        sleep(minute - STEP).await;
        assert_eq!(model(runtime).await.state, ModelState::Ready);
        assert_eq!(world.pings.load(Ordering::SeqCst), 0);
        sleep(STEP * 2).await;
        assert_eq!((model(runtime).await.state, world.running.load(Ordering::SeqCst)), (ModelState::Unloaded, 0));
        whole(2, &read(runtime.complete(request("", 2)).unwrap()).await);
    });
}

#[test]
fn a_long_answer_is_work_and_no_stall() {
    house(config(), &[], async |runtime, world| {
        whole(100, &read(runtime.complete(request("slow", 100)).unwrap()).await);
        assert_eq!(model(runtime).await.restarts, 0);
        // One every five seconds, of a second for each token.
        assert_eq!(world.pings.load(Ordering::SeqCst), 20);
    });
}

#[test]
fn questions_are_answered_or_told_that_their_worker_is_lost() {
    house(config(), &[], async |runtime, _| {
        assert_eq!(runtime.ask("a", Question::Tokenize("hi".into())).await, Ok(Answer::Tokens(vec![104, 105])));
        let lost = Error::WorkerLost { model: "a".into(), cause: "its thread ended".into() };
        assert_eq!(runtime.ask("a", Question::Tokenize("die".into())).await, Err(lost));
        assert_eq!(runtime.ask("a", Question::Tokenize("x".into())).await, Ok(Answer::Tokens(vec![120])));
    });
}

#[test]
fn a_card_is_shown_without_loading_the_weights() {
    house(config(), &[], async |runtime, world| {
        assert_eq!(runtime.show("a").await.unwrap().weight_bytes, 1);
        assert_eq!((model(runtime).await.state, world.running.load(Ordering::SeqCst)), (ModelState::Unloaded, 0));
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        assert_eq!(runtime.show("a").await, Ok(model_info()));
        assert_eq!(world.started.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn what_has_no_ticket_or_no_model_is_refused_at_once() {
    house(config(), &[], async |runtime, _| {
        let readers: Vec<_> = (0..16).map(|_| runtime.complete(request("", 3)).unwrap()).collect();
        let overloaded = Error::Overloaded { limit: 16 };
        assert_eq!(runtime.complete(request("", 3)).err(), Some(overloaded.clone()));
        assert_eq!(runtime.ask("a", Question::Tokenize(String::new())).await, Err(overloaded));
        for reader in readers {
            whole(3, &read(reader).await);
            // Its ticket is back before its end is read.
            drop(runtime.complete(request("", 1)).unwrap());
        }
        let unknown = Error::UnknownModel { name: "c".into(), known: vec!["a".into(), "b".into()] };
        assert_eq!(runtime.complete(Request { model: "c".into(), ..request("", 1) }).err(), Some(unknown.clone()));
        assert_eq!(runtime.load("c", |_, _| {}).await, Err(unknown));
    });
}

#[test]
fn shutdown_waits_for_what_is_in_hand_and_cancels_what_takes_longer() {
    house(config(), &[], async |runtime, world| {
        let short = runtime.complete(request("", 20)).unwrap();
        let long = runtime.complete(request("", 1_000_000)).unwrap();
        until(&mut short.clone(), 1).await;
        let start = Instant::now();
        let (short, long, ()) = tokio::join!(read(short.clone()), read(long), async {
            runtime.shutdown(GRACE).await;
            assert_eq!(world.running.load(Ordering::SeqCst), 0);
        });
        assert!((GRACE..GRACE * 2).contains(&start.elapsed()));
        whole(20, &short);
        assert_eq!(long.1, End::Failed(Error::ShuttingDown));
        assert_eq!(runtime.complete(request("", 1)).err(), Some(Error::ShuttingDown));
        runtime.ended().await;
    });
}

#[test]
fn a_runtime_is_usable_from_no_runtime_and_its_last_clone_ends_everything() {
    let config = Config { isolation: Isolation::Process { program: "/nowhere/souffleur".into(), arguments: Vec::new() }, ..config() };
    let runtime = Runtime::start(Config { restarts: RestartLimit { deaths: 0, period: GRACE }, ..config }).unwrap();
    // Without clock and reactor: the runtime has its own.
    let caller = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let end = caller.block_on(read(runtime.clone().complete(request("", 1)).unwrap())).1;
    assert!(matches!(&end, End::Failed(Error::ModelFailed { cause, .. }) if cause.starts_with("could not be started: ")), "{end:?}");
    let ended = runtime.ended();
    drop(runtime);
    caller.block_on(ended);
}

/// Compiles only while a connection may await them on any executor.
#[test]
fn what_the_front_door_returns_is_send() {
    fn send<T: Send>(_: impl FnOnce(&'static Runtime) -> T) {}
    send(|runtime| runtime.ask("a", Question::Detokenize(Vec::new())));
    send(|runtime| runtime.load("a", |_, _| {}));
    send(|runtime| runtime.unload("a"));
    send(|runtime| runtime.show("a"));
    send(|runtime| runtime.status());
    send(|runtime| runtime.shutdown(GRACE));
    send(|runtime| runtime.ended());
}
