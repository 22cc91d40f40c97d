//! Requests that kill their worker, and stages that don't stop failing: who pays for it, and who does not.

use crate::stand::Stand;
use crate::support::{Wire, model_folder};
use serde_json::{Value, json};
use souffleur::failpoints::{Action, Point};

const TOKENS: u32 = 60;

fn last_cause(model: &Value) -> &str {
    model["deaths"].as_array().and_then(|deaths| deaths.last()?["cause"].as_str()).unwrap_or_else(|| panic!("no death in {model}"))
}

#[test]
fn a_request_that_kills_its_worker_is_lost_and_the_15_beside_it_are_not() {
    let mut stand = Stand::new(Wire::Lines, &[]);
    let undisturbed: Vec<_> = (0..15).map(|seed| stand.undisturbed(seed, TOKENS)).collect();
    stand.arm(Point::Stopper, Action::Abort, "always seed=99");
    let mut ids: Vec<_> = (0..8).map(|seed| stand.stream(seed, TOKENS)).collect();
    let killer = stand.stream(99, TOKENS);
    ids.extend((8..15).map(|seed| stand.stream(seed, TOKENS)));
    let told = stand.ends(&ids);
    assert_eq!(stand.ends(&[killer])[0].kind(), Some("worker_lost"));
    for (told, undisturbed) in told.iter().zip(&undisturbed) {
        assert_eq!((told.kind(), &told.text), (None, undisturbed));
    }
    let model = stand.model();
    // With the others, perhaps once more while some of them were running again, and alone.
    assert!((2..=3).contains(&model["restarts"].as_u64().unwrap()), "{model}");
    assert!(last_cause(&model).contains("signal 6"), "{model}");
    assert_eq!(stand.undisturbed(3, TOKENS), undisturbed[3]);
}

#[test]
fn a_prompter_past_its_limit_takes_its_worker_down_once() {
    let mut stand = Stand::new(Wire::Lines, &["--prompt-limit", "2", "--threads", "1"]);
    let undisturbed = stand.undisturbed(1, 400);
    for point in [Point::Template, Point::Tokenizer] {
        let before = stand.model()["restarts"].as_u64().unwrap();
        // Always: a second try would stall again.
        stand.arm(point, Action::Stall, "always seed=99");
        let beside = stand.stream(1, 400);
        stand.pieces(beside, 3);
        let stalls = stand.stream(99, TOKENS);
        let waits = stand.stream(1, 400);
        let told = stand.ends(&[beside, stalls, waits]);
        let model = stand.model();
        assert_eq!((told[0].kind(), told[1].kind(), told[2].kind()), (None, Some("worker_lost"), None), "{model}");
        assert_eq!((&told[0].text, &told[2].text), (&undisturbed, &undisturbed));
        assert_eq!(model["restarts"], before + 1, "{model}");
        assert_eq!(last_cause(&model), "its prompter spent more than 2 s on one request");
        stand.disarm(point);
    }
}

#[test]
fn a_stage_that_keeps_panicking_takes_its_worker_and_then_its_model_and_no_other() {
    let other = model_folder();
    let folder = other.path().to_str().unwrap();
    let mut stand = Stand::new(Wire::Lines, &["-m", "embedded", "-m", folder, "--restarts", "2"]);
    let name = other.path().file_name().unwrap().to_str().unwrap();
    let elsewhere = |stand: &mut Stand| stand.call("complete", json!({"model": name, "prompt": "import os\n", "maxTokens": 4, "seed": 2}));
    let undisturbed = (stand.undisturbed(2, TOKENS), elsewhere(&mut stand)["result"]["text"].clone());
    stand.arm(Point::Sampler, Action::Panic, "always seed=99");
    let mut workers = Vec::<Value>::new();
    // Two panics are borne and the third is not; two deaths are, and the third is not.
    for _ in 0..9 {
        let id = stand.stream(99, TOKENS);
        assert_eq!(stand.ends(&[id])[0].kind(), Some("stage_panicked"));
        workers.push(stand.model()["workerPid"].clone());
    }
    let id = stand.stream(99, TOKENS);
    let failed = stand.ends(&[id])[0].response()["error"].clone();
    assert_eq!(failed["data"]["kind"], "model_failed");
    assert!(failed["message"].as_str().unwrap().contains("its sampler panicked too often"), "{failed}");
    let model = stand.model();
    assert_eq!((&model["state"], &model["restarts"]), (&json!("failed"), &json!(3)));
    assert_eq!(elsewhere(&mut stand)["result"]["text"], undisturbed.1);
    stand.disarm(Point::Sampler);
    assert!(stand.call("models/load", json!({"model": "embedded"}))["result"].is_object());
    assert_eq!(stand.undisturbed(2, TOKENS), undisturbed.0);
    // The first two of each three were of one worker.
    assert_eq!((&workers[0], &workers[3], &workers[6]), (&workers[1], &workers[4], &workers[7]));
    assert!(workers[0] != workers[3] && workers[3] != workers[6]);
}
