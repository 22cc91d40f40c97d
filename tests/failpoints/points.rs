//! Every point and everything that can happen there, each alone: one end for every request, and nothing is left behind.

use crate::stand::{Stand, Told};
use crate::support::Wire;
use serde_json::json;
use souffleur::failpoints::{Action, Point, Site};
use std::time::{Duration, Instant};

const TOKENS: u32 = 24;
/// A stall's limit is five seconds; a few loads come on top, on a machine that may have ten times as much to do as it can.
const HANG: Duration = Duration::from_secs(60);

/// When a fault begins to wait.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Before the model is loaded.
    Cold,
    /// In the middle of two streams.
    Warm,
}

/// When there is something to be hit; a point that is not named here is tried at both.
fn moments(point: Point) -> &'static [Moment] {
    use Point::*;
    match point {
        FrontSpawn | FrontSpawned | WorkerStart | WorkerHello | Inspect | LoadFiles | LoadTokenizer | LoadPack | LoadEnd => &[Moment::Cold],
        Template | Tokenizer | Processor | Sampler | Stopper | Admit | Reserve | Prefill | Decode | Keep => &[Moment::Warm],
        _ => &[Moment::Cold, Moment::Warm],
    }
}

/// Half of them each, because a transport knows nothing of workers.
#[test]
fn every_second_fault_over_stdio() {
    inject_all(Wire::Lines, 0, |action| action != Action::Stall, &[]);
}

#[test]
fn every_other_fault_over_a_websocket() {
    inject_all(Wire::Socket, 1, |action| action != Action::Stall, &[]);
}

#[test]
fn every_second_stall_over_stdio() {
    inject_all(Wire::Lines, 0, |action| action == Action::Stall, STALLS);
}

#[test]
fn every_other_stall_over_a_websocket() {
    inject_all(Wire::Socket, 1, |action| action == Action::Stall, STALLS);
}

/// A worker that only has to wait for its processor must not be taken for one that stands still.
const STALLS: &[&str] = &["--stall-limit", "5", "--prompt-limit", "5"];

fn inject_all(wire: Wire, first: usize, which: impl Fn(Action) -> bool, arguments: &[&str]) {
    // One thread, because the machine has other workers at the same time; no cache, so that every prompt is read.
    let mut stand = Stand::new(wire, &[&["--restarts", "1000", "--threads", "1", "--cache", "0"], arguments].concat());
    let undisturbed: Vec<_> = (0..4).map(|seed| stand.undisturbed(seed, TOKENS)).collect();
    let (descriptors, processes) = (stand.descriptors(), stand.processes());
    assert_eq!(processes, 1, "a worker");
    let all = Point::ALL.iter().flat_map(|&point| point.spec().1.actions().iter().map(move |&action| (point, action)));
    for (point, action) in all.filter(|(_, action)| which(*action)).skip(first).step_by(2) {
        let mut happened = false;
        for &moment in moments(point) {
            let here = format!("{action:?} at {point:?}, {moment:?}, over {wire:?}");
            let start = Instant::now();
            happened |= one(&mut stand, point, action, moment, &undisturbed, &here);
            // The next request works, and everything is as it was.
            assert_eq!(stand.undisturbed(3, TOKENS), undisturbed[3], "after {here}");
            stand.until((descriptors, processes), |stand| (stand.descriptors(), stand.processes()));
            assert!(start.elapsed() < HANG, "{here} took {:?}", start.elapsed());
        }
        assert!(happened, "nothing comes by {point:?}");
    }
    assert_eq!(stand.model()["inFlight"], 0);
}

/// Plays one fault, and says whether it happened.
fn one(stand: &mut Stand, point: Point, action: Action, moment: Moment, undisturbed: &[String], here: &str) -> bool {
    let ids: Vec<_> = match moment {
        Moment::Cold => {
            stand.call("models/unload", json!({"model": "embedded"}));
            stand.arm(point, action, "");
            (0..3).map(|seed| stand.stream(seed, TOKENS)).collect()
        }
        Moment::Warm => {
            let mut ids: Vec<_> = (0..2).map(|seed| stand.stream(seed, TOKENS)).collect();
            ids.iter().for_each(|&id| stand.pieces(id, 3));
            stand.arm(point, action, "");
            ids.push(stand.stream(2, TOKENS));
            ids
        }
    };
    let told = stand.ends(&ids);
    let whole = |(told, undisturbed): (&Told, &String)| told.kind().is_none() && told.text == *undisturbed;
    let mut kinds: Vec<_> = told.iter().zip(undisturbed).filter(|one| !whole(*one)).map(|(told, _)| told.kind()).collect();
    kinds.dedup();
    let happened = stand.disarm(point);
    let lost = told.iter().filter(|told| told.kind().is_some()).count();
    let expected = match (happened, point.spec().1, action) {
        (true, Site::Stage | Site::StageStep, Action::Panic) => lost == 1 && kinds == [Some("stage_panicked")],
        (true, Site::Stage, Action::Error) => lost == 1 && kinds == [Some("unsupported")],
        // It is known which request a prompter was at.
        (true, Site::Stage, Action::Stall) if point != Point::Stopper => lost == 1 && kinds == [Some("worker_lost")],
        // A model that says it can't be loaded is believed.
        (true, Site::Worker, Action::Error) if point.spec().0.starts_with("load.") => lost == 3 && kinds.len() == 1,
        // A defect of the front: what its life held is lost.
        (true, Site::Front | Site::FrontWrite, Action::Panic) => kinds.is_empty() || kinds == [Some("worker_lost")],
        _ => kinds.is_empty(),
    };
    assert!(expected, "{here}, happened: {happened}: {told:#?}");
    happened || inspected(stand, point, action, moment)
}

/// Some points are on the way of one question only.
fn inspected(stand: &mut Stand, point: Point, action: Action, moment: Moment) -> bool {
    if !matches!((point, moment), (Point::Inspect, Moment::Cold)) {
        return false;
    }
    stand.call("models/unload", json!({"model": "embedded"}));
    stand.arm(point, action, "");
    let answer = stand.call("models/show", json!({"model": "embedded"}));
    let kind = answer["error"]["data"]["kind"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(kind, if action == Action::Error { "internal" } else { "worker_lost" });
    assert!(stand.call("models/show", json!({"model": "embedded"}))["result"].is_object());
    stand.disarm(point)
}
