//! A panic in a stage fails the request that caused it, immediately, and no other.

use crate::harness::{Harness, completion};
use crate::support::Transport;
use serde_json::{Value, json};
use souffleur::failpoints::{Action, Point, Site};
use std::time::{Duration, Instant};

/// From a request to its `stage_panicked` error.
const RESPONSE_TIME: Duration = Duration::from_millis(50);

/// A method, its params, and whether it generates text.
fn calls() -> Vec<(&'static str, Value, bool)> {
    let complete = completion(7, 8);
    let mut infill = complete.clone();
    let infill_only = json!({"prefix": "def add(a, b):\n    return ", "suffix": "\n"});
    let mut chat = complete.clone();
    let chat_only = json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add."}]});
    for (params, only) in [(&mut infill, &infill_only), (&mut chat, &chat_only)] {
        params.as_object_mut().unwrap().remove("prompt");
        params.as_object_mut().unwrap().extend(only.as_object().unwrap().clone());
    }
    vec![
        ("complete", complete, true),
        ("infill", infill, true),
        ("chat", chat, true),
        ("tokenize", json!({"text": "fn main() {}"}), false),
        ("detokenize", json!({"tokens": [405, 284]}), false),
        ("prompt/render", json!({"complete": {"prompt": "a"}}), false),
        ("prompt/render", json!({"infill": infill_only}), false),
        ("prompt/render", json!({"chat": chat_only}), false),
    ]
}

/// Whether requests of `method` pass `point`.
fn passes(point: Point, method: &str, completion: bool) -> bool {
    match point {
        Point::Tokenizer => true,
        Point::Template => completion || method == "prompt/render",
        _ => completion,
    }
}

/// The stage name in the error data.
fn stage(point: Point) -> &'static str {
    match point {
        // Logits processors run in the sampler stage.
        Point::Processor => "sampler",
        other => other.spec().0,
    }
}

#[test]
fn a_panic_in_any_stage_gives_one_typed_error_for_every_method() {
    let mut harness = Harness::new(Transport::Lines, &["--restarts", "1000"]);
    harness.reference_text(1, 8);
    let worker = harness.model()["workerPid"].clone();
    let stages = Point::ALL.iter().filter(|point| matches!(point.spec().1, Site::Stage | Site::StageStep));
    let mut times = Vec::new();
    for &point in stages {
        for (method, params, completion) in calls() {
            for streams in [false, true] {
                if streams && !completion {
                    continue;
                }
                let mut params = params.clone();
                if streams {
                    params["partialResultToken"] = json!(0);
                }
                let case = format!("{point:?}, {method}, streaming: {streams}");
                harness.arm(point, Action::Panic, "");
                let start = Instant::now();
                let response = harness.call(method, params.clone());
                let time = start.elapsed();
                assert_eq!(harness.disarm(point), passes(point, method, completion), "{case}");
                if passes(point, method, completion) {
                    assert_eq!(
                        (&response["error"]["data"]["kind"], &response["error"]["data"]["stage"]),
                        (&json!("stage_panicked"), &json!(stage(point))),
                        "{case}: {response}"
                    );
                    times.push(time);
                } else {
                    assert!(response["result"].is_object(), "{case}: {response}");
                }
                params.as_object_mut().unwrap().remove("partialResultToken");
                let next = harness.call(method, params);
                assert!(next["result"].is_object(), "{case}, and then {next}");
            }
        }
    }
    times.sort();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("time to the error of {} panics: median {median:?}, maximum {longest:?}", times.len());
    // The median only: other tests that run at the same time can delay single responses.
    assert!(median <= RESPONSE_TIME, "{median:?}");
    assert_eq!(harness.model()["workerPid"], worker, "the worker was restarted");
}

#[test]
fn a_panic_in_one_batch_member_fails_only_that_member() {
    let mut harness = Harness::new(Transport::WebSocket, &["--restarts", "1000"]);
    let reference = harness.batch(&[("complete", completion(1, 8)), ("complete", completion(2, 8))]);
    for &point in Point::ALL.iter().filter(|point| matches!(point.spec().1, Site::Stage | Site::StageStep)) {
        harness.arm(point, Action::Panic, "seed=2");
        let responses = harness.batch(&[("complete", completion(1, 8)), ("complete", completion(2, 8))]);
        assert!(harness.disarm(point));
        assert_eq!(responses[0]["result"]["text"], reference[0]["result"]["text"]);
        assert_eq!(responses[1]["error"]["data"]["kind"], "stage_panicked", "{point:?}: {responses}");
    }
}
