//! What a load leaves alone: other models' streams, and what was before it.

use super::{GRACE, config, house, read, request, until, whole};
use crate::actors::front::{
    Runtime,
    script::{Plan, STEP, model_info},
};
use crate::actors::{End, Error, ModelState, ModelStatus, Request};
use crate::models;
use std::sync::atomic::Ordering;
use tokio::time::{Instant, sleep};

async fn models(runtime: &Runtime) -> [ModelStatus; 2] {
    runtime.models().await.try_into().expect("two are configured")
}

fn refused() -> Error {
    Error::Model(models::Error::Memory { needed: 2, free: 1 })
}

#[test]
fn a_load_that_takes_long_delays_no_other_model() {
    house(config(), &[Plan::Load, Plan::StallLoading], async |runtime, world| {
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        let stream = runtime.complete(request("", 100)).unwrap();
        until(&mut stream.clone(), 1).await;
        let start = Instant::now();
        let reads = async {
            while world.started.load(Ordering::SeqCst) < 2 {
                sleep(STEP).await;
            }
            whole(100, &read(stream).await);
            // Nor what comes anew.
            whole(3, &read(runtime.complete(request("", 3)).unwrap()).await);
            let [a, b] = models(runtime).await;
            assert_eq!((a.state, b.state), (ModelState::Ready, ModelState::Loading));
            start.elapsed()
        };
        let (took, loaded) = tokio::join!(reads, runtime.load("b", |_, _| {}));
        assert!(took < GRACE, "{took:?}");
        // Its stall was seen, and another worker loaded it.
        assert_eq!(loaded, Ok(model_info()));
        assert!(start.elapsed() >= runtime.limits().decoder_silence);
    });
}

#[test]
fn a_refused_load_leaves_everything_as_it_was() {
    let dying = [Plan::DieLoading, Plan::DieLoading, Plan::DieLoading, Plan::DieLoading];
    let plans = [&[Plan::Load, Plan::Refuse(refused())][..], &dying, &[Plan::Refuse(refused())]].concat();
    house(config(), &plans, async |runtime, _| {
        let of_b = || Request { model: "b".into(), ..request("", 2) };
        let stream = runtime.complete(request("", 500)).unwrap();
        until(&mut stream.clone(), 1).await;
        assert_eq!(runtime.load("b", |_, _| {}).await, Err(refused()));
        let [a, b] = models(runtime).await;
        assert_eq!((a.state, a.in_flight, b.state), (ModelState::Ready, 1, ModelState::Unloaded));
        // What is loaded is not loaded again, so there is nothing to refuse.
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        whole(500, &read(stream).await);
        // Given up, and the load that was to try again is refused: given up as before, for the same reason.
        let failed = || Error::ModelFailed { model: "b".into(), cause: "its thread ended".into() };
        assert_eq!(runtime.load("b", |_, _| {}).await, Err(failed()));
        assert_eq!(runtime.load("b", |_, _| {}).await, Err(refused()));
        assert_eq!(models(runtime).await[1].state, ModelState::Failed);
        assert_eq!(read(runtime.complete(of_b()).unwrap()).await.1, End::Failed(failed()));
        assert_eq!(runtime.load("b", |_, _| {}).await, Ok(model_info()));
        whole(2, &read(runtime.complete(of_b()).unwrap()).await);
        assert_eq!(models(runtime).await[1].state, ModelState::Ready);
    });
}
