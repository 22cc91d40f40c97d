//! Requests after the death of a worker, its session, or its ModelActor.

use super::fake_worker::{LOAD_TIME, STEP_TIME, StartPlan, expected_text, model_info};
use super::{GRACE, assert_complete, config, first_model_status, read_to_end, read_tokens, reason, request, with_runtime};
use crate::actors::front::model::ModelActor;
use crate::actors::{End, Error, FinishReason, ModelState, Question};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::{Instant, sleep, timeout};

#[test]
fn a_worker_that_dies_is_replaced_and_its_streams_continue() {
    with_runtime(config(), &[], async |runtime, workers| {
        let fatal = runtime.complete(request("die-once@4", 8)).unwrap();
        let others = [(); 3].map(|()| runtime.complete(request("", 12)).unwrap());
        assert_complete(8, &read_to_end(fatal).await);
        for other in others {
            assert_complete(12, &read_to_end(other).await);
        }
        assert_eq!(workers.received()[4..], ["replay 1", "replay 2", "replay 3", "replay 4"]);
        let status = first_model_status(runtime).await;
        assert_eq!((status.restarts, status.last_cause()), (1, Some("its thread ended")));
    });
}

#[test]
fn only_the_request_that_kills_its_worker_repeatedly_is_lost() {
    with_runtime(config(), &[], async |runtime, workers| {
        let before = runtime.complete(request("", 40)).unwrap();
        let fatal = runtime.complete(request("die@4", 8)).unwrap();
        let after = runtime.complete(request("", 40)).unwrap();
        let (text_read, end) = read_to_end(fatal).await;
        assert_eq!(text_read, expected_text(4)[..expected_text(4).len() - 1]);
        assert_eq!(end, End::Failed(Error::WorkerLost { model: "a".into(), cause: "its thread ended".into() }));
        // Requests that arrive during replays wait for them.
        let new = runtime.complete(request("", 3)).unwrap();
        assert_complete(40, &read_to_end(before).await);
        assert_complete(40, &read_to_end(after).await);
        assert_complete(3, &read_to_end(new).await);
        assert_eq!(workers.received()[3..], ["replay 1", "replay 2", "replay 2", "replay 1", "replay 3", "generate 4"]);
    });
}

#[test]
fn a_started_request_does_not_continue_with_another_model() {
    with_runtime(config(), &[StartPlan::Load, StartPlan::LoadAnother], async |runtime, _| {
        let (text_read, end) = read_to_end(runtime.complete(request("die-once@4", 8)).unwrap()).await;
        assert_eq!(text_read, expected_text(4)[..expected_text(4).len() - 1]);
        let cause = "its files now contain another model".into();
        assert_eq!(end, End::Failed(Error::WorkerLost { model: "a".into(), cause }));
        assert_complete(3, &read_to_end(runtime.complete(request("", 3)).unwrap()).await);
    });
}

#[test]
fn a_request_can_be_cancelled_or_end_during_its_replay() {
    with_runtime(config(), &[], async |runtime, _| {
        let mut first = runtime.complete(request("die-once@4", 1000)).unwrap();
        let last_token = runtime.complete(request("", 5)).unwrap();
        let waiting = runtime.complete(request("", 1000)).unwrap();
        read_tokens(&mut first, 4).await;
        // Between two sessions.
        while first_model_status(runtime).await.state != ModelState::Restarting {
            sleep(STEP_TIME).await;
        }
        assert_eq!(reason(&waiting.abandon().wait().await), Some(FinishReason::Cancelled));
        assert_eq!(reason(&first.abandon().wait().await), Some(FinishReason::Cancelled));
        assert_complete(5, &read_to_end(last_token).await);
    });
}

#[test]
fn a_model_that_keeps_dying_fails_until_an_explicit_load() {
    let plans = [StartPlan::DieLoading, StartPlan::NotStarted, StartPlan::DieLoading, StartPlan::DieLoading];
    with_runtime(config(), &plans, async |runtime, workers| {
        let start = Instant::now();
        let (_, end) = read_to_end(runtime.complete(request("", 1)).unwrap()).await;
        let failed = || Error::ModelFailed { model: "a".into(), cause: "its thread ended".into() };
        assert_eq!(end, End::Failed(failed()));
        assert_eq!(start.elapsed(), LOAD_TIME * 3 + Duration::from_millis(50 + 100 + 200));
        // Immediately, and without another worker.
        assert_eq!(read_to_end(runtime.complete(request("", 1)).unwrap()).await.1, End::Failed(failed()));
        assert_eq!(runtime.ask("a", Question::Tokenize("x".into())).await, Err(failed()));
        let status = first_model_status(runtime).await;
        assert_eq!((status.state, status.restarts), (ModelState::Failed, 4));
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        assert_complete(1, &read_to_end(runtime.complete(request("", 1)).unwrap()).await);
        assert_eq!(workers.started.load(Ordering::SeqCst), 4);
    });
}

#[test]
fn a_decoder_that_does_not_respond_is_replaced_and_its_streams_continue() {
    with_runtime(config(), &[StartPlan::StallLoading], async |runtime, workers| {
        let start = Instant::now();
        let stalled = runtime.complete(request("stall@3", 5)).unwrap();
        let silence = runtime.limits().decoder_silence;
        // The first worker stalls in its load; `stall` affects requests in the first worker only.
        assert_complete(5, &read_to_end(stalled).await);
        assert!((silence..silence + GRACE).contains(&start.elapsed()), "{:?}", start.elapsed());
        assert_eq!(first_model_status(runtime).await.last_cause(), Some("its decoder did not respond for 30 s"));
        assert_eq!(workers.started.load(Ordering::SeqCst), 2);
    });
    with_runtime(config(), &[], async |runtime, _| {
        let mut stalled = runtime.complete(request("stall@3", 5)).unwrap();
        read_tokens(&mut stalled.clone(), 3).await;
        let start = Instant::now();
        let status = runtime.status().await;
        assert_eq!((status.models[0].state, &status.models[0].decoder), (ModelState::Stalled, &None));
        assert_eq!((start.elapsed(), status.models[0].last_activity), (GRACE, Some(GRACE)));
        read_tokens(&mut stalled, 4).await;
        assert_eq!(first_model_status(runtime).await.restarts, 1);
    });
}

#[test]
fn a_model_whose_loads_keep_stalling_fails() {
    let plans = [StartPlan::StallLoading, StartPlan::StallLoading, StartPlan::StallLoading, StartPlan::StallLoading];
    with_runtime(config(), &plans, async |runtime, workers| {
        let (_, end) = read_to_end(runtime.complete(request("", 1)).unwrap()).await;
        assert_eq!(end, End::Failed(Error::ModelFailed { model: "a".into(), cause: "its decoder did not respond for 30 s".into() }));
        assert_eq!(workers.started.load(Ordering::SeqCst), 4);
    });
}

#[test]
fn a_question_without_a_caller_releases_its_permit() {
    with_runtime(config(), &[StartPlan::StallLoading], async |runtime, _| {
        let limit = runtime.limits().requests_in_flight;
        let questions = (0..limit).map(|_| runtime.ask("a", Question::Tokenize("x".into())));
        let all = timeout(GRACE, futures_util::future::join_all(questions)).await;
        assert!(all.is_err(), "the model is still loading");
        sleep(GRACE).await;
        assert_eq!(runtime.status().await.requests_in_flight, 0);
    });
}

#[test]
fn a_suspended_process_does_not_end_its_workers() {
    with_runtime(config(), &[], async |runtime, workers| {
        let reader = runtime.complete(request("slow", 5)).unwrap();
        read_tokens(&mut reader.clone(), 1).await;
        // As after SIGSTOP and SIGCONT: time passed while this process did not run.
        tokio::time::advance(runtime.limits().decoder_silence * 2).await;
        assert_complete(5, &read_to_end(reader).await);
        assert_eq!((first_model_status(runtime).await.restarts, workers.started.load(Ordering::SeqCst)), (0, 1));
    });
}

#[test]
fn a_session_that_panics_counts_as_a_death_and_loses_its_requests() {
    with_runtime(config(), &[StartPlan::PanicStarting], async |runtime, _| {
        let (_, end) = read_to_end(runtime.complete(request("", 1)).unwrap()).await;
        let cause = "its session stopped before the request ended".into();
        assert_eq!(end, End::Failed(Error::WorkerLost { model: "a".into(), cause }));
        assert_complete(2, &read_to_end(runtime.complete(request("", 2)).unwrap()).await);
        assert_eq!(first_model_status(runtime).await.last_cause(), Some("its session panicked"));
    });
}

#[derive(actix::Message)]
#[rtype(result = "()")]
struct Panic;

impl actix::Handler<Panic> for ModelActor {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        panic!("on purpose");
    }
}

#[test]
fn a_model_actor_that_panics_loses_its_requests_and_is_replaced() {
    with_runtime(config(), &[], async |runtime, workers| {
        let mut reader = runtime.complete(request("", 1000)).unwrap();
        let load = runtime.load("a", |_, _| {});
        let panics = async {
            read_tokens(&mut reader.clone(), 1).await;
            runtime.actor("a").await.unwrap().send(Panic).await.unwrap_err();
        };
        let (loaded, ()) = tokio::join!(load, panics);
        assert_eq!(loaded, Ok(model_info()));
        let end = loop {
            if let Some(end) = reader.next().await.end {
                break end;
            }
        };
        assert!(matches!(end, End::Failed(Error::WorkerLost { .. })), "{end:?}");
        assert_complete(2, &read_to_end(runtime.complete(request("", 2)).unwrap()).await);
        assert_eq!(workers.running.load(Ordering::SeqCst), 1);
    });
}
