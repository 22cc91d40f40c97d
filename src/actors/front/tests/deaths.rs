//! What becomes of requests when a worker, its life or its actor dies.

use super::{GRACE, config, house, model, read, reason, request, until, whole};
use crate::actors::front::{
    model::ModelActor,
    script::{LOAD, Plan, STEP, model_info, text},
};
use crate::actors::{End, Error, FinishReason, ModelState, Question};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::{Instant, sleep, timeout};

#[test]
fn a_worker_that_dies_is_replaced_and_its_streams_go_on() {
    house(config(), &[], async |runtime, world| {
        let killer = runtime.complete(request("die-once@4", 8)).unwrap();
        let others = [(); 3].map(|()| runtime.complete(request("", 12)).unwrap());
        whole(8, &read(killer).await);
        for other in others {
            whole(12, &read(other).await);
        }
        assert_eq!(world.heard()[4..], ["replay 1", "replay 2", "replay 3", "replay 4"]);
        let status = model(runtime).await;
        assert_eq!((status.restarts, status.last_cause()), (1, Some("its thread ended")));
    });
}

#[test]
fn a_request_that_kills_its_worker_twice_is_lost_and_no_other() {
    house(config(), &[], async |runtime, world| {
        let before = runtime.complete(request("", 40)).unwrap();
        let killer = runtime.complete(request("die@4", 8)).unwrap();
        let after = runtime.complete(request("", 40)).unwrap();
        let (said, end) = read(killer).await;
        assert_eq!(said, text(4)[..text(4).len() - 1]);
        assert_eq!(end, End::Failed(Error::WorkerLost { model: "a".into(), cause: "its thread ended".into() }));
        // It comes while there are replays, so it waits for them.
        let fresh = runtime.complete(request("", 3)).unwrap();
        whole(40, &read(before).await);
        whole(40, &read(after).await);
        whole(3, &read(fresh).await);
        assert_eq!(world.heard()[3..], ["replay 1", "replay 2", "replay 2", "replay 1", "replay 3", "generate 4"]);
    });
}

#[test]
fn a_text_does_not_go_on_in_another_model() {
    house(config(), &[Plan::Load, Plan::LoadAnother], async |runtime, _| {
        let (said, end) = read(runtime.complete(request("die-once@4", 8)).unwrap()).await;
        assert_eq!(said, text(4)[..text(4).len() - 1]);
        let cause = "its files are another model's now".into();
        assert_eq!(end, End::Failed(Error::WorkerLost { model: "a".into(), cause }));
        whole(3, &read(runtime.complete(request("", 3)).unwrap()).await);
    });
}

#[test]
fn a_replayed_request_can_be_cancelled_and_ended_in_its_turn() {
    house(config(), &[], async |runtime, _| {
        let mut first = runtime.complete(request("die-once@4", 1000)).unwrap();
        let last_token = runtime.complete(request("", 5)).unwrap();
        let waits = runtime.complete(request("", 1000)).unwrap();
        until(&mut first, 4).await;
        // Between two lives.
        while model(runtime).await.state != ModelState::Restarting {
            sleep(STEP).await;
        }
        assert_eq!(reason(&waits.abandon().wait().await), Some(FinishReason::Cancelled));
        assert_eq!(reason(&first.abandon().wait().await), Some(FinishReason::Cancelled));
        whole(5, &read(last_token).await);
    });
}

#[test]
fn a_model_that_keeps_dying_fails_until_it_is_loaded_again() {
    let plans = [Plan::DieLoading, Plan::NotStarted, Plan::DieLoading, Plan::DieLoading];
    house(config(), &plans, async |runtime, world| {
        let start = Instant::now();
        let (_, end) = read(runtime.complete(request("", 1)).unwrap()).await;
        let failed = || Error::ModelFailed { model: "a".into(), cause: "its thread ended".into() };
        assert_eq!(end, End::Failed(failed()));
        assert_eq!(start.elapsed(), LOAD * 3 + Duration::from_millis(50 + 100 + 200));
        // At once, and without another worker.
        assert_eq!(read(runtime.complete(request("", 1)).unwrap()).await.1, End::Failed(failed()));
        assert_eq!(runtime.ask("a", Question::Tokenize("x".into())).await, Err(failed()));
        let status = model(runtime).await;
        assert_eq!((status.state, status.restarts), (ModelState::Failed, 4));
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        whole(1, &read(runtime.complete(request("", 1)).unwrap()).await);
        assert_eq!(world.started.load(Ordering::SeqCst), 4);
    });
}

#[test]
fn a_decoder_that_gives_no_sign_is_replaced_and_its_streams_go_on() {
    house(config(), &[Plan::StallLoading], async |runtime, world| {
        let start = Instant::now();
        let stalled = runtime.complete(request("stall@3", 5)).unwrap();
        let silence = runtime.limits().decoder_silence;
        // The load stalls first; only the first life's words stall a request.
        whole(5, &read(stalled).await);
        assert!((silence..silence + GRACE).contains(&start.elapsed()), "{:?}", start.elapsed());
        assert_eq!(model(runtime).await.last_cause(), Some("its decoder gave no sign for 30 s"));
        assert_eq!(world.started.load(Ordering::SeqCst), 2);
    });
    house(config(), &[], async |runtime, _| {
        let mut stalled = runtime.complete(request("stall@3", 5)).unwrap();
        until(&mut stalled.clone(), 3).await;
        let start = Instant::now();
        let status = runtime.status().await;
        assert_eq!((status.models[0].state, &status.models[0].decoder), (ModelState::Stalled, &None));
        assert_eq!((start.elapsed(), status.models[0].last_sign), (GRACE, Some(GRACE)));
        until(&mut stalled, 4).await;
        assert_eq!(model(runtime).await.restarts, 1);
    });
}

#[test]
fn a_model_whose_loads_stall_again_and_again_fails() {
    let plans = [Plan::StallLoading, Plan::StallLoading, Plan::StallLoading, Plan::StallLoading];
    house(config(), &plans, async |runtime, world| {
        let (_, end) = read(runtime.complete(request("", 1)).unwrap()).await;
        assert_eq!(end, End::Failed(Error::ModelFailed { model: "a".into(), cause: "its decoder gave no sign for 30 s".into() }));
        assert_eq!(world.started.load(Ordering::SeqCst), 4);
    });
}

#[test]
fn a_question_whose_asker_left_holds_no_ticket() {
    house(config(), &[Plan::StallLoading], async |runtime, _| {
        let limit = runtime.limits().requests_in_flight;
        let asked = (0..limit).map(|_| runtime.ask("a", Question::Tokenize("x".into())));
        let all = timeout(GRACE, futures_util::future::join_all(asked)).await;
        assert!(all.is_err(), "nothing is loaded yet");
        sleep(GRACE).await;
        assert_eq!(runtime.status().await.requests_in_flight, 0);
    });
}

#[test]
fn a_front_that_stood_still_itself_blames_no_worker() {
    house(config(), &[], async |runtime, world| {
        let reader = runtime.complete(request("slow", 5)).unwrap();
        until(&mut reader.clone(), 1).await;
        // As after SIGSTOP and SIGCONT: the clock went on, and nothing of this process did.
        tokio::time::advance(runtime.limits().decoder_silence * 2).await;
        whole(5, &read(reader).await);
        assert_eq!((model(runtime).await.restarts, world.started.load(Ordering::SeqCst)), (0, 1));
    });
}

#[test]
fn a_life_that_panics_is_a_death_and_loses_what_it_held() {
    house(config(), &[Plan::PanicStarting], async |runtime, _| {
        let (_, end) = read(runtime.complete(request("", 1)).unwrap()).await;
        let cause = "its supervision ended without an answer".into();
        assert_eq!(end, End::Failed(Error::WorkerLost { model: "a".into(), cause }));
        whole(2, &read(runtime.complete(request("", 2)).unwrap()).await);
        assert_eq!(model(runtime).await.last_cause(), Some("its life panicked"));
    });
}

#[derive(actix::Message)]
#[rtype(result = "()")]
struct Panic;

impl actix::Handler<Panic> for ModelActor {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        panic!("as the test wants it");
    }
}

#[test]
fn a_model_actor_that_panics_loses_its_requests_and_gets_a_successor() {
    house(config(), &[], async |runtime, world| {
        let mut reader = runtime.complete(request("", 1000)).unwrap();
        let question = runtime.load("a", |_, _| {});
        let panics = async {
            until(&mut reader.clone(), 1).await;
            runtime.actor("a").await.unwrap().send(Panic).await.unwrap_err();
        };
        let (loaded, ()) = tokio::join!(question, panics);
        assert_eq!(loaded, Ok(model_info()));
        let end = loop {
            if let Some(end) = reader.next().await.end {
                break end;
            }
        };
        assert!(matches!(end, End::Failed(Error::WorkerLost { .. })), "{end:?}");
        whole(2, &read(runtime.complete(request("", 2)).unwrap()).await);
        assert_eq!(world.running.load(Ordering::SeqCst), 1);
    });
}
