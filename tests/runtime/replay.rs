//! Replay: a worker that continues a request after any of its tokens generates the same rest.

use crate::support::{done, greedy, infill, text};
use souffleur::actors::worker::{Disconnected, Outbox, run};
use souffleur::actors::{
    End, FinishReason, FromWorker, ModelInfo, ModelSource, Replay, Request, Sampled, Sampling, Settings, Step, ToWorker,
};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// A worker on a thread, driven by messages like those of the front.
struct Worker {
    to: Sender<ToWorker>,
    from: Receiver<FromWorker>,
    info: ModelInfo,
}

impl Worker {
    fn new() -> Self {
        let ((to, inbox), (sender, from)) = (channel(), channel());
        let outbox = Outbox::new(move |message| sender.send(message).map_err(|_| Disconnected));
        thread::spawn(move || run(inbox, outbox, None));
        let source = ModelSource::Folder(concat!(env!("CARGO_MANIFEST_DIR"), "/assets").into());
        to.send(ToWorker::Load { source, settings: Settings::default() }).unwrap();
        let loaded = from.iter().find_map(|message| if let FromWorker::Loaded(loaded) = message { Some(loaded) } else { None });
        let info = loaded.expect("a `Loaded` message").expect("the embedded model's folder loads");
        Self { to, from, info }
    }

    fn generate(&self, request: &Request, replay: Replay) -> (Vec<Step>, End) {
        self.to.send(ToWorker::Generate { id: 1, request: request.clone(), replay }).unwrap();
        let mut steps = Vec::new();
        for message in &self.from {
            match message {
                FromWorker::Step { step, .. } => steps.push(step),
                FromWorker::End { end, .. } => return (steps, end),
                other => panic!("{other:?}"),
            }
        }
        panic!("the worker has exited")
    }
}

fn joined(steps: &[Step]) -> (String, Vec<Sampled>) {
    (steps.iter().map(|step| step.text.as_str()).collect(), steps.iter().flat_map(|step| step.tokens.clone()).collect())
}

/// Replays the request after every one of its tokens, also after the last one, where only the end is missing.
fn check(worker: &Worker, request: &Request, reason: FinishReason) {
    let (steps, end) = worker.generate(request, Replay::default());
    let (expected, usage) = done(&end);
    assert_eq!(expected, reason, "{request:?} gave {:?}", joined(&steps).0);
    for delivered in 1..=steps.len() {
        let (text, tokens) = joined(&steps[..delivered]);
        let (rest, end) = worker.generate(request, Replay { tokens, delivered_bytes: text.len() as u64 });
        assert_eq!(joined(&rest), joined(&steps[delivered..]), "after {delivered} of {} tokens of {request:?}", steps.len());
        let (replayed, used) = done(&end);
        assert_eq!((replayed, used.completion_tokens, used.prompt_tokens), (reason, usage.completion_tokens, usage.prompt_tokens));
    }
}

#[test]
fn a_replayed_request_continues_after_any_token() {
    let worker = Worker::new();
    let prompts = [text("fn main() {\n    let name = \"é"), infill("def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n")];
    for prompt in prompts {
        let cached = Sampling { temperature: 0.8, top_p: 0.95, seed: 3, repetition_penalty: 1.1, ..Sampling::default() };
        let request = Request { sampling: cached, logprobs: Some(2), ..greedy(prompt, 16) };
        let (steps, end) = worker.generate(&request, Replay::default());
        check(&worker, &request, done(&end).0);
        // With a stop sequence that is reached, and with ones of which only the first character occurs.
        let (text, _) = joined(&steps);
        let stop: String = text.chars().skip(text.chars().count() / 2).take(3).collect();
        assert!(!stop.is_empty());
        check(&worker, &Request { stop: vec![stop], ..request.clone() }, FinishReason::Stop);
        let begun = text.chars().map(|c| format!("{c}\u{1}")).take(16).collect();
        check(&worker, &Request { stop: begun, ..request }, done(&end).0);
    }
}

#[test]
fn a_request_replayed_after_its_last_token_ends_the_same_way() {
    let worker = Worker::new();
    let request = greedy(text("import os\n"), 5);
    check(&worker, &request, FinishReason::Length);
    let (steps, _) = worker.generate(&request, Replay::default());
    // Forces EOS as the first token.
    let bias = vec![(worker.info.eos[0].0, 1000.0)];
    let eos = Request { sampling: Sampling { logit_bias: bias, ..Sampling::default() }, ..request.clone() };
    check(&worker, &eos, FinishReason::Eos);
    let stop = joined(&steps).0.chars().skip(2).take(3).collect();
    check(&worker, &Request { stop: vec![stop], ..request }, FinishReason::Stop);
}
