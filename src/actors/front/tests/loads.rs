//! Loads don't disturb other models, and a failed load restores the previous state.

use super::fake_worker::{STEP_TIME, StartPlan, model_info};
use super::{GRACE, assert_complete, config, read_to_end, read_tokens, request, with_runtime};
use crate::actors::front::Runtime;
use crate::actors::{End, Error, ModelState, ModelStatus, Request};
use crate::models;
use std::sync::atomic::Ordering;
use tokio::time::{Instant, sleep};

async fn models(runtime: &Runtime) -> [ModelStatus; 2] {
    runtime.models().await.try_into().expect("two models are configured")
}

fn out_of_memory() -> Error {
    Error::Model(models::Error::Memory { needed: 2, free: 1 })
}

#[test]
fn a_slow_load_does_not_delay_other_models() {
    with_runtime(config(), &[StartPlan::Load, StartPlan::StallLoading], async |runtime, workers| {
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        let stream = runtime.complete(request("", 100)).unwrap();
        read_tokens(&mut stream.clone(), 1).await;
        let start = Instant::now();
        let reads = async {
            while workers.started.load(Ordering::SeqCst) < 2 {
                sleep(STEP_TIME).await;
            }
            assert_complete(100, &read_to_end(stream).await);
            // New requests are not delayed either.
            assert_complete(3, &read_to_end(runtime.complete(request("", 3)).unwrap()).await);
            let [a, b] = models(runtime).await;
            assert_eq!((a.state, b.state), (ModelState::Ready, ModelState::Loading));
            start.elapsed()
        };
        let (took, loaded) = tokio::join!(reads, runtime.load("b", |_, _| {}));
        assert!(took < GRACE, "{took:?}");
        // The stalled worker was replaced, and the next one loaded the model.
        assert_eq!(loaded, Ok(model_info()));
        assert!(start.elapsed() >= runtime.limits().decoder_silence);
    });
}

#[test]
fn a_failed_load_restores_the_previous_state() {
    let dying = [StartPlan::DieLoading, StartPlan::DieLoading, StartPlan::DieLoading, StartPlan::DieLoading];
    let plans = [&[StartPlan::Load, StartPlan::FailLoad(out_of_memory())][..], &dying, &[StartPlan::FailLoad(out_of_memory())]].concat();
    with_runtime(config(), &plans, async |runtime, _| {
        let of_b = || Request { model: "b".into(), ..request("", 2) };
        let stream = runtime.complete(request("", 500)).unwrap();
        read_tokens(&mut stream.clone(), 1).await;
        assert_eq!(runtime.load("b", |_, _| {}).await, Err(out_of_memory()));
        let [a, b] = models(runtime).await;
        assert_eq!((a.state, a.in_flight, b.state), (ModelState::Ready, 1, ModelState::Unloaded));
        // A loaded model is not loaded again.
        assert_eq!(runtime.load("a", |_, _| {}).await, Ok(model_info()));
        assert_complete(500, &read_to_end(stream).await);
        // The model fails, and a load that can't succeed leaves it failed with the same cause.
        let failed = || Error::ModelFailed { model: "b".into(), cause: "its thread ended".into() };
        assert_eq!(runtime.load("b", |_, _| {}).await, Err(failed()));
        assert_eq!(runtime.load("b", |_, _| {}).await, Err(out_of_memory()));
        assert_eq!(models(runtime).await[1].state, ModelState::Failed);
        assert_eq!(read_to_end(runtime.complete(of_b()).unwrap()).await.1, End::Failed(failed()));
        assert_eq!(runtime.load("b", |_, _| {}).await, Ok(model_info()));
        assert_complete(2, &read_to_end(runtime.complete(of_b()).unwrap()).await);
        assert_eq!(models(runtime).await[1].state, ModelState::Ready);
    });
}
