//! Requests that crash or stall their worker every time, and stages that keep panicking: only the culprit fails.

use crate::harness::Harness;
use crate::support::{Transport, model_folder};
use serde_json::{Value, json};
use souffleur::failpoints::{Action, Point};

const TOKENS: u32 = 60;

fn last_cause(model: &Value) -> &str {
    model["deaths"].as_array().and_then(|deaths| deaths.last()?["cause"].as_str()).unwrap_or_else(|| panic!("no death in {model}"))
}

#[test]
fn a_request_that_crashes_its_worker_fails_and_15_concurrent_ones_complete() {
    let mut harness = Harness::new(Transport::Lines, &[]);
    let reference: Vec<_> = (0..15).map(|seed| harness.reference_text(seed, TOKENS)).collect();
    harness.arm(Point::Stopper, Action::Abort, "always seed=99");
    let mut ids: Vec<_> = (0..8).map(|seed| harness.stream(seed, TOKENS)).collect();
    let killer = harness.stream(99, TOKENS);
    ids.extend((8..15).map(|seed| harness.stream(seed, TOKENS)));
    let outcomes = harness.outcomes(&ids);
    assert_eq!(harness.outcomes(&[killer])[0].kind(), Some("worker_lost"));
    for (outcome, reference) in outcomes.iter().zip(&reference) {
        assert_eq!((outcome.kind(), &outcome.text), (None, reference));
    }
    let model = harness.model();
    // One crash in the shared batch, perhaps a second one during the replay, and one when it runs alone.
    assert!((2..=3).contains(&model["restarts"].as_u64().unwrap()), "{model}");
    assert!(last_cause(&model).contains("signal 6"), "{model}");
    assert_eq!(harness.reference_text(3, TOKENS), reference[3]);
}

#[test]
fn a_prompter_over_its_time_limit_restarts_its_worker_once() {
    let mut harness = Harness::new(Transport::Lines, &["--prompt-limit", "2", "--threads", "1"]);
    let reference = harness.reference_text(1, 400);
    for point in [Point::Template, Point::Tokenizer] {
        let before = harness.model()["restarts"].as_u64().unwrap();
        // `always`: a retry would stall again.
        harness.arm(point, Action::Stall, "always seed=99");
        let running = harness.stream(1, 400);
        harness.wait_for_updates(running, 3);
        let stalling = harness.stream(99, TOKENS);
        let queued = harness.stream(1, 400);
        let outcomes = harness.outcomes(&[running, stalling, queued]);
        let model = harness.model();
        assert_eq!((outcomes[0].kind(), outcomes[1].kind(), outcomes[2].kind()), (None, Some("worker_lost"), None), "{model}");
        assert_eq!((&outcomes[0].text, &outcomes[2].text), (&reference, &reference));
        assert_eq!(model["restarts"], before + 1, "{model}");
        assert_eq!(last_cause(&model), "its prompter spent more than 2 s on one request");
        harness.disarm(point);
    }
}

#[test]
fn a_stage_that_keeps_panicking_ends_its_worker_then_its_model_but_no_other_model() {
    let other = model_folder();
    let folder = other.path().to_str().unwrap();
    let mut harness = Harness::new(Transport::Lines, &["-m", "embedded", "-m", folder, "--restarts", "2"]);
    let name = other.path().file_name().unwrap().to_str().unwrap();
    let complete_on_other =
        |harness: &mut Harness| harness.call("complete", json!({"model": name, "prompt": "import os\n", "maxTokens": 4, "seed": 2}));
    let reference = (harness.reference_text(2, TOKENS), complete_on_other(&mut harness)["result"]["text"].clone());
    harness.arm(Point::Sampler, Action::Panic, "always seed=99");
    let mut workers = Vec::<Value>::new();
    // The third panic ends the worker, and the third worker exit ends the model.
    for _ in 0..9 {
        let id = harness.stream(99, TOKENS);
        assert_eq!(harness.outcomes(&[id])[0].kind(), Some("stage_panicked"));
        workers.push(harness.model()["workerPid"].clone());
    }
    let id = harness.stream(99, TOKENS);
    let failed = harness.outcomes(&[id])[0].response()["error"].clone();
    assert_eq!(failed["data"]["kind"], "model_failed");
    assert!(failed["message"].as_str().unwrap().contains("its sampler panicked too often"), "{failed}");
    let model = harness.model();
    assert_eq!((&model["state"], &model["restarts"]), (&json!("failed"), &json!(3)));
    assert_eq!(complete_on_other(&mut harness)["result"]["text"], reference.1);
    harness.disarm(Point::Sampler);
    assert!(harness.call("models/load", json!({"model": "embedded"}))["result"].is_object());
    assert_eq!(harness.reference_text(2, TOKENS), reference.0);
    // The first two panics of each three happened in the same worker.
    assert_eq!((&workers[0], &workers[3], &workers[6]), (&workers[1], &workers[4], &workers[7]));
    assert!(workers[0] != workers[3] && workers[3] != workers[6]);
}
