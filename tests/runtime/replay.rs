//! A text that another worker began, taken up after each of its tokens: the rest is what it would have been.

use crate::support::{ask, done, hole, text};
use souffleur::actors::worker::{Disconnected, Outbox, run};
use souffleur::actors::{
    End, FinishReason, FromWorker, ModelInfo, ModelSource, Replay, Request, Sampled, Sampling, Settings, Step, ToWorker,
};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// A worker on a thread, spoken to as a front does.
struct Worker {
    to: Sender<ToWorker>,
    from: Receiver<FromWorker>,
    card: ModelInfo,
}

impl Worker {
    fn new() -> Self {
        let ((to, inbox), (said, from)) = (channel(), channel());
        let outbox = Outbox::new(move |message| said.send(message).map_err(|_| Disconnected));
        thread::spawn(move || run(inbox, outbox, None));
        let source = ModelSource::Folder(concat!(env!("CARGO_MANIFEST_DIR"), "/assets").into());
        to.send(ToWorker::Load { source, settings: Settings::default() }).unwrap();
        let loaded = from.iter().find_map(|message| if let FromWorker::Loaded(loaded) = message { Some(loaded) } else { None });
        let card = loaded.expect("it answers").expect("the embedded model's folder loads");
        Self { to, from, card }
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
        panic!("the worker is gone")
    }
}

fn joined(steps: &[Step]) -> (String, Vec<Sampled>) {
    (steps.iter().map(|step| step.text.as_str()).collect(), steps.iter().flat_map(|step| step.tokens.clone()).collect())
}

/// Takes the answer up after every one of its tokens, the last included: it may be that only its end was not told any more.
fn check(worker: &Worker, request: &Request, reason: FinishReason) {
    let (steps, end) = worker.generate(request, Replay::default());
    let (expected, usage) = done(&end);
    assert_eq!(expected, reason, "{request:?} gave {:?}", joined(&steps).0);
    for told in 1..=steps.len() {
        let (text, tokens) = joined(&steps[..told]);
        let (rest, end) = worker.generate(request, Replay { tokens, delivered_bytes: text.len() as u64 });
        assert_eq!(joined(&rest), joined(&steps[told..]), "after {told} of {} tokens of {request:?}", steps.len());
        let (again, used) = done(&end);
        assert_eq!((again, used.completion_tokens, used.prompt_tokens), (reason, usage.completion_tokens, usage.prompt_tokens));
    }
}

#[test]
fn an_answer_goes_on_after_any_of_its_tokens() {
    let worker = Worker::new();
    let prompts = [text("fn main() {\n    let name = \"é"), hole("def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n")];
    for prompt in prompts {
        let warm = Sampling { temperature: 0.8, top_p: 0.95, seed: 3, repetition_penalty: 1.1, ..Sampling::default() };
        let request = Request { sampling: warm, logprobs: Some(2), ..ask(prompt, 16) };
        let (steps, end) = worker.generate(&request, Replay::default());
        check(&worker, &request, done(&end).0);
        // The same, with a stop sequence that it comes to, and one that it is always about to come to.
        let (text, _) = joined(&steps);
        let stop: String = text.chars().skip(text.chars().count() / 2).take(3).collect();
        assert!(!stop.is_empty());
        check(&worker, &Request { stop: vec![stop], ..request.clone() }, FinishReason::Stop);
        let begun = text.chars().map(|c| format!("{c}\u{1}")).take(16).collect();
        check(&worker, &Request { stop: begun, ..request }, done(&end).0);
    }
}

#[test]
fn an_answer_whose_end_alone_was_not_told_ends_as_it_did() {
    let worker = Worker::new();
    let request = ask(text("import os\n"), 5);
    check(&worker, &request, FinishReason::Length);
    let (steps, _) = worker.generate(&request, Replay::default());
    // Forced to end the text at once.
    let bias = vec![(worker.card.eos[0].0, 1000.0)];
    let eos = Request { sampling: Sampling { logit_bias: bias, ..Sampling::default() }, ..request.clone() };
    check(&worker, &eos, FinishReason::Eos);
    let stop = joined(&steps).0.chars().skip(2).take(3).collect();
    check(&worker, &Request { stop: vec![stop], ..request }, FinishReason::Stop);
}
