//! Arms every failpoint with each of its allowed actions, one at a time: every request gets exactly one response, and nothing
//! leaks.
//!
//! A case is a failpoint with an action. Each transport runs every second case, because the transport is outside the worker and
//! does not change what a fault does in it. `front`, `worker`, `prompter` and `stage` are defined in ARCHITECTURE.md.

use crate::harness::{Harness, Outcome};
use crate::support::Transport;
use serde_json::json;
use souffleur::failpoints::{Action, Point, Site};
use std::time::{Duration, Instant};

const TOKENS: u32 = 24;
/// The stall limit of 5 s plus a few model loads, on a machine that may be heavily overloaded.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// When the failpoint is armed.
#[derive(Clone, Copy, Debug)]
enum When {
    BeforeLoad,
    /// While two streams are generating.
    MidStream,
}

/// The moments from which a failpoint can be reached. A failpoint that is not listed, such as a new one, is armed at both.
fn moments_to_arm(point: Point) -> &'static [When] {
    use Point::*;
    match point {
        FrontSpawn | FrontSpawned | WorkerStart | WorkerHello | Inspect | LoadFiles | LoadTokenizer | LoadPack | LoadEnd => {
            &[When::BeforeLoad]
        }
        Template | Tokenizer | Processor | Sampler | Stopper | Admit | Reserve | Prefill | Decode | Keep => &[When::MidStream],
        _ => &[When::BeforeLoad, When::MidStream],
    }
}

#[test]
fn even_cases_over_stdio() {
    inject_all(Transport::Lines, 0, |action| action != Action::Stall, &[]);
}

#[test]
fn odd_cases_over_websocket() {
    inject_all(Transport::WebSocket, 1, |action| action != Action::Stall, &[]);
}

#[test]
fn even_stalls_over_stdio() {
    inject_all(Transport::Lines, 0, |action| action == Action::Stall, STALL_OPTIONS);
}

#[test]
fn odd_stalls_over_websocket() {
    inject_all(Transport::WebSocket, 1, |action| action == Action::Stall, STALL_OPTIONS);
}

/// Options for stalls: limits well above the delays of an overloaded machine, where a worker that waits for a CPU must not
/// count as stalled.
const STALL_OPTIONS: &[&str] = &["--stall-limit", "5", "--prompt-limit", "5"];

/// Runs every second case of the selected actions, from the case `first`.
fn inject_all(transport: Transport, first: usize, selected: impl Fn(Action) -> bool, options: &[&str]) {
    // One thread, because other tests run workers at the same time. No prefix cache, so that every prompt is computed.
    let mut harness = Harness::new(transport, &[&["--restarts", "1000", "--threads", "1", "--cache", "0"], options].concat());
    let reference: Vec<_> = (0..4).map(|seed| harness.reference_text(seed, TOKENS)).collect();
    let (descriptors, processes) = (harness.descriptors(), harness.processes());
    assert_eq!(processes, 1, "one worker");
    let cases = Point::ALL.iter().flat_map(|&point| point.spec().1.actions().iter().map(move |&action| (point, action)));
    for (point, action) in cases.filter(|(_, action)| selected(*action)).skip(first).step_by(2) {
        let mut triggered = false;
        for &when in moments_to_arm(point) {
            let case = format!("{action:?} at {point:?}, {when:?}, over {transport:?}");
            let start = Instant::now();
            triggered |= inject(&mut harness, point, action, when, &reference, &case);
            // The next request succeeds, and no descriptor or process is left over.
            assert_eq!(harness.reference_text(3, TOKENS), reference[3], "after {case}");
            harness.until((descriptors, processes), |harness| (harness.descriptors(), harness.processes()));
            assert!(start.elapsed() < TIME_LIMIT, "{case} took {:?}", start.elapsed());
        }
        assert!(triggered, "{point:?} was never reached");
    }
    assert_eq!(harness.model()["inFlight"], 0);
}

/// Injects one fault while three requests run, and `Inspect` faults during `models/show`. Returns whether it was triggered.
fn inject(harness: &mut Harness, point: Point, action: Action, when: When, reference: &[String], case: &str) -> bool {
    let ids: Vec<_> = match when {
        When::BeforeLoad => {
            harness.call("models/unload", json!({"model": "embedded"}));
            harness.arm(point, action, "");
            (0..3).map(|seed| harness.stream(seed, TOKENS)).collect()
        }
        When::MidStream => {
            let mut ids: Vec<_> = (0..2).map(|seed| harness.stream(seed, TOKENS)).collect();
            ids.iter().for_each(|&id| harness.wait_for_updates(id, 3));
            harness.arm(point, action, "");
            ids.push(harness.stream(2, TOKENS));
            ids
        }
    };
    let outcomes = harness.outcomes(&ids);
    let complete = |(outcome, reference): (&Outcome, &String)| outcome.kind().is_none() && outcome.text == *reference;
    let mut failure_kinds: Vec<_> =
        outcomes.iter().zip(reference).filter(|pair| !complete(*pair)).map(|(outcome, _)| outcome.kind()).collect();
    failure_kinds.dedup();
    let triggered = harness.disarm(point);
    let failed = outcomes.iter().filter(|outcome| outcome.kind().is_some()).count();
    let expected = match (triggered, point.spec().1, action) {
        (true, Site::Stage | Site::StageStep, Action::Panic) => failed == 1 && failure_kinds == [Some("stage_panicked")],
        (true, Site::Stage, Action::Error) => failed == 1 && failure_kinds == [Some("unsupported")],
        // Only the request whose prompt stage stalls fails. `Stopper` runs in the decoder: its requests are replayed.
        (true, Site::Stage, Action::Stall) if point != Point::Stopper => failed == 1 && failure_kinds == [Some("worker_lost")],
        // A load error fails every request, all with the same kind of error.
        (true, Site::Worker, Action::Error) if point.spec().0.starts_with("load.") => failed == 3 && failure_kinds.len() == 1,
        // A panic in the front may fail the requests of its worker session.
        (true, Site::Front | Site::FrontWrite, Action::Panic) => failure_kinds.is_empty() || failure_kinds == [Some("worker_lost")],
        _ => failure_kinds.is_empty(),
    };
    assert!(expected, "{case}, triggered: {triggered}: {outcomes:#?}");
    triggered || inject_into_show(harness, point, action, when)
}

/// The `Inspect` failpoint is reached only by `models/show`.
fn inject_into_show(harness: &mut Harness, point: Point, action: Action, when: When) -> bool {
    if !matches!((point, when), (Point::Inspect, When::BeforeLoad)) {
        return false;
    }
    harness.call("models/unload", json!({"model": "embedded"}));
    harness.arm(point, action, "");
    let response = harness.call("models/show", json!({"model": "embedded"}));
    let kind = response["error"]["data"]["kind"].as_str().unwrap_or_else(|| panic!("{response}"));
    assert_eq!(kind, if action == Action::Error { "internal" } else { "worker_lost" });
    assert!(harness.call("models/show", json!({"model": "embedded"}))["result"].is_object());
    harness.disarm(point)
}
