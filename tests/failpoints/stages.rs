//! A panic in a stage ends the request that it happened to, at once, and nothing else.

use crate::stand::{Stand, completion};
use crate::support::Wire;
use serde_json::{Value, json};
use souffleur::failpoints::{Action, Point, Site};
use std::time::{Duration, Instant};

/// From a request to its answer, which is that a stage panicked.
const ANSWER_TIME: Duration = Duration::from_millis(50);

/// A method, its params, and whether it is a completion.
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

/// Which stages a message goes through.
fn goes_through(point: Point, method: &str, completion: bool) -> bool {
    match point {
        Point::Tokenizer => true,
        Point::Template => completion || method == "prompt/render",
        _ => completion,
    }
}

/// The stage as its error names it.
fn stage(point: Point) -> &'static str {
    match point {
        // They are one stage.
        Point::Processor => "sampler",
        other => other.spec().0,
    }
}

#[test]
fn a_panic_in_any_stage_is_one_typed_answer_to_any_message() {
    let mut stand = Stand::new(Wire::Lines, &["--restarts", "1000"]);
    stand.undisturbed(1, 8);
    let worker = stand.model()["workerPid"].clone();
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
                let here = format!("{point:?}, {method}, streaming: {streams}");
                stand.arm(point, Action::Panic, "");
                let start = Instant::now();
                let answer = stand.call(method, params.clone());
                let time = start.elapsed();
                assert_eq!(stand.disarm(point), goes_through(point, method, completion), "{here}");
                if goes_through(point, method, completion) {
                    assert_eq!(
                        (&answer["error"]["data"]["kind"], &answer["error"]["data"]["stage"]),
                        (&json!("stage_panicked"), &json!(stage(point))),
                        "{here}: {answer}"
                    );
                    times.push(time);
                } else {
                    assert!(answer["result"].is_object(), "{here}: {answer}");
                }
                params.as_object_mut().unwrap().remove("partialResultToken");
                let next = stand.call(method, params);
                assert!(next["result"].is_object(), "{here}, and then {next}");
            }
        }
    }
    times.sort();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("{} panics were answered, half of them within {median:?}, all within {longest:?}", times.len());
    // A machine that is busy with other tests may be late once.
    assert!(median <= ANSWER_TIME, "{median:?}");
    assert_eq!(stand.model()["workerPid"], worker, "nothing ended the worker");
}

#[test]
fn a_panic_for_one_member_of_a_batch_is_of_that_member() {
    let mut stand = Stand::new(Wire::Socket, &["--restarts", "1000"]);
    let undisturbed = stand.batch(&[("complete", completion(1, 8)), ("complete", completion(2, 8))]);
    for &point in Point::ALL.iter().filter(|point| matches!(point.spec().1, Site::Stage | Site::StageStep)) {
        stand.arm(point, Action::Panic, "seed=2");
        let answers = stand.batch(&[("complete", completion(1, 8)), ("complete", completion(2, 8))]);
        assert!(stand.disarm(point));
        assert_eq!(answers[0]["result"]["text"], undisturbed[0]["result"]["text"]);
        assert_eq!(answers[1]["error"]["data"]["kind"], "stage_panicked", "{point:?}: {answers}");
    }
}
