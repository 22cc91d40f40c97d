//! Every failpoint with every action it allows, one at a time: each request gets exactly one response, and nothing leaks.

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

/// When a failpoint can be reached. The default is both, so a new failpoint is covered.
fn times_to_arm(point: Point) -> &'static [When] {
    use Point::*;
    match point {
        FrontSpawn | FrontSpawned | WorkerStart | WorkerHello | Inspect | LoadFiles | LoadTokenizer | LoadPack | LoadEnd => {
            &[When::BeforeLoad]
        }
        Template | Tokenizer | Processor | Sampler | Stopper | Admit | Reserve | Prefill | Decode | Keep => &[When::MidStream],
        _ => &[When::BeforeLoad, When::MidStream],
    }
}

/// Each transport gets half of the failpoints: transports do not depend on what happens in a worker.
#[test]
fn half_of_the_failpoints_over_stdio() {
    inject_all(Transport::Lines, 0, |action| action != Action::Stall, &[]);
}

#[test]
fn other_half_of_the_failpoints_over_websocket() {
    inject_all(Transport::WebSocket, 1, |action| action != Action::Stall, &[]);
}

#[test]
fn half_of_the_stalls_over_stdio() {
    inject_all(Transport::Lines, 0, |action| action == Action::Stall, STALLS);
}

#[test]
fn other_half_of_the_stalls_over_websocket() {
    inject_all(Transport::WebSocket, 1, |action| action == Action::Stall, STALLS);
}

/// Limits well above the delays of an overloaded machine: a worker that waits for a CPU must not count as stalled.
const STALLS: &[&str] = &["--stall-limit", "5", "--prompt-limit", "5"];

fn inject_all(transport: Transport, first: usize, selected: impl Fn(Action) -> bool, arguments: &[&str]) {
    // One thread, because other tests run workers at the same time. No prefix cache, so that every prompt is computed.
    let mut harness = Harness::new(transport, &[&["--restarts", "1000", "--threads", "1", "--cache", "0"], arguments].concat());
    let reference: Vec<_> = (0..4).map(|seed| harness.reference_text(seed, TOKENS)).collect();
    let (descriptors, processes) = (harness.descriptors(), harness.processes());
    assert_eq!(processes, 1, "a worker");
    let cases = Point::ALL.iter().flat_map(|&point| point.spec().1.actions().iter().map(move |&action| (point, action)));
    for (point, action) in cases.filter(|(_, action)| selected(*action)).skip(first).step_by(2) {
        let mut triggered = false;
        for &when in times_to_arm(point) {
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

/// Injects one fault while three requests run. Returns whether it was triggered.
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
    let mut kinds: Vec<_> = outcomes.iter().zip(reference).filter(|pair| !complete(*pair)).map(|(outcome, _)| outcome.kind()).collect();
    kinds.dedup();
    let triggered = harness.disarm(point);
    let lost = outcomes.iter().filter(|outcome| outcome.kind().is_some()).count();
    let expected = match (triggered, point.spec().1, action) {
        (true, Site::Stage | Site::StageStep, Action::Panic) => lost == 1 && kinds == [Some("stage_panicked")],
        (true, Site::Stage, Action::Error) => lost == 1 && kinds == [Some("unsupported")],
        // Only the request that stalls the prompter is lost.
        (true, Site::Stage, Action::Stall) if point != Point::Stopper => lost == 1 && kinds == [Some("worker_lost")],
        // A load error fails every request, all with the same kind of error.
        (true, Site::Worker, Action::Error) if point.spec().0.starts_with("load.") => lost == 3 && kinds.len() == 1,
        // A panic in the front: the requests of that worker session are lost.
        (true, Site::Front | Site::FrontWrite, Action::Panic) => kinds.is_empty() || kinds == [Some("worker_lost")],
        _ => kinds.is_empty(),
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
