//! The scheduler over a scripted backend: without weights, processes or threads.

use super::Batch;
use crate::actors::worker::messages::{Job, Outbox, Prepared, ToDecoder};
use crate::actors::worker::probe::ActivityProbe;
use crate::actors::{End, Error, FinishReason, FromWorker, ModelError, ModelSource, Prompt, Replay, Request, Sampled, Sampling, Usage};
use crate::models::backend::script::{Logits, Script};
use crate::models::codec::TextCodec;
use crate::models::network::{Decoder, DecoderSpec};
use crate::models::weights::Files;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

/// The embedded model's end-of-text token.
const EOS: u32 = 0;

static MODEL: LazyLock<(DecoderSpec, Arc<TextCodec>)> = LazyLock::new(|| {
    let assets = ModelSource::Folder(concat!(env!("CARGO_MANIFEST_DIR"), "/assets").into());
    let files = Files::open(&assets, None).unwrap();
    let spec = DecoderSpec::parse(&files).unwrap();
    let codec = TextCodec::open(&files, &spec).unwrap();
    (DecoderSpec { layers: 1, ..spec }, Arc::new(codec))
});

/// Tokens of ordinary text, by all the tokens before: another history gives other tokens.
fn endless(tokens: &[u32]) -> Logits {
    Logits::Token(tokens.iter().fold(tokens.len() as u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token)) % 997 + 1000)
}

/// As `endless`, ending now and then.
fn ending(tokens: &[u32]) -> Logits {
    match endless(tokens) {
        Logits::Token(token) if token % 7 == 0 => Logits::Token(EOS),
        logits => logits,
    }
}

/// The completion of a prompt that runs alone.
fn alone(next: fn(&[u32]) -> Logits, prompt: &[u32], tokens_max: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < prompt.len() + tokens_max && (tokens.len() == prompt.len() || tokens.last() != Some(&EOS)) {
        let Logits::Token(token) = next(&tokens) else { panic!("a token is scripted") };
        tokens.push(token);
    }
    tokens.split_off(prompt.len())
}

/// A batch, its requests, and all that it reported.
struct Harness {
    batch: Batch<Script>,
    script: Script,
    cancelled: BTreeMap<u64, Arc<AtomicBool>>,
    messages: Arc<Mutex<Vec<FromWorker>>>,
}

impl Harness {
    fn new(next: fn(&[u32]) -> Logits, runs_ahead: bool, cache_bytes: usize, kv_tokens_max: u64) -> Self {
        let (spec, codec) = &*MODEL;
        let script = Script::new(spec, next, runs_ahead);
        let decoder = Decoder::without_weights(spec.clone(), script.clone());
        let messages = Arc::new(Mutex::new(Vec::new()));
        let sent = messages.clone();
        let outbox = Outbox::new(move |message| {
            sent.lock().unwrap().push(message);
            Ok(())
        });
        let batch = Batch::new(decoder, codec.clone(), cache_bytes, kv_tokens_max, outbox, ActivityProbe::default());
        Self { batch, script, cancelled: BTreeMap::new(), messages }
    }

    fn request(&mut self, id: u64, prompt: &[u32], tokens_max: usize, sampling: Sampling) {
        self.replay(id, prompt, tokens_max, sampling, &[]);
    }

    /// A request that an earlier worker has answered with these tokens, whose text was not delivered.
    fn replay(&mut self, id: u64, prompt: &[u32], tokens_max: usize, sampling: Sampling, tokens: &[u32]) {
        let tokens = tokens.iter().map(|&token| Sampled { token, logprob: 0.0, top: Vec::new() }).collect();
        let replay = Replay { tokens, delivered_bytes: 0 };
        let cancelled = Arc::new(AtomicBool::new(false));
        self.cancelled.insert(id, cancelled.clone());
        let request = Request {
            model: "embedded".into(),
            prompt: Prompt::Text(String::new()),
            sampling,
            stop: Vec::new(),
            tokens_max: tokens_max as u32,
            logprobs: None,
        };
        let job = Job { id, request, replay, cancelled, arrived: Instant::now() };
        self.batch.receive(ToDecoder::Generate(Box::new(Prepared { job, prompt: prompt.to_vec() }))).unwrap();
    }

    fn generate(&mut self, id: u64, prompt: &[u32], tokens_max: usize) {
        self.request(id, prompt, tokens_max, Sampling::default());
    }

    fn cancel(&self, id: u64) {
        self.cancelled[&id].store(true, Relaxed);
    }

    fn steps(&mut self, count: usize) {
        (0..count).for_each(|_| self.batch.step().unwrap());
    }

    fn run(&mut self) {
        while !self.batch.is_idle() {
            self.batch.step().unwrap();
        }
    }

    fn tokens(&self, id: u64) -> Vec<u32> {
        let messages = self.messages.lock().unwrap();
        let of = |message: &FromWorker| match message {
            FromWorker::Step { id: of, step } if *of == id => step.tokens.iter().map(|sampled| sampled.token).collect(),
            _ => Vec::new(),
        };
        messages.iter().flat_map(of).collect()
    }

    /// The ends of a request: one, if all is well.
    fn ends(&self, id: u64) -> Vec<Result<(FinishReason, Usage), Error>> {
        let messages = self.messages.lock().unwrap();
        let of = |message: &FromWorker| match message {
            FromWorker::End { id: of, end } if *of == id => Some(match end {
                End::Done { reason, usage, .. } => Ok((*reason, *usage)),
                End::Failed(error) => Err(error.clone()),
            }),
            _ => None,
        };
        messages.iter().filter_map(of).collect()
    }

    fn end(&self, id: u64) -> Result<(FinishReason, Usage), Error> {
        let [end] = &self.ends(id)[..] else { panic!("request {id} ends once: {:?}", self.ends(id)) };
        end.clone()
    }

    fn order_of_ends(&self) -> Vec<u64> {
        let ends = |message: &FromWorker| if let FromWorker::End { id, .. } = message { Some(*id) } else { None };
        self.messages.lock().unwrap().iter().filter_map(ends).collect()
    }
}

fn prompt(first: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| first + i % 100).collect()
}

#[test]
fn a_request_that_may_not_fit_waits_until_there_is_room() {
    let mut harness = Harness::new(endless, false, 0, 40);
    // 15 positions each but the third, which is longer than the memory and runs alone.
    for (id, tokens_max) in [(1, 5), (2, 5), (3, 90), (4, 5)] {
        harness.generate(id, &prompt(40 + id as u32, 10), tokens_max);
    }
    let mut running = Vec::new();
    while !harness.batch.is_idle() {
        harness.steps(1);
        running.push(harness.batch.status().running);
    }
    assert_eq!(harness.order_of_ends(), [1, 2, 3, 4]);
    assert_eq!(running.iter().max(), Some(&2));
    assert!(running.iter().filter(|&&running| running == 1).count() >= 89, "{running:?}");
}

#[test]
fn prompts_share_a_step_evenly_and_decoding_goes_on_beside_them() {
    let mut harness = Harness::new(endless, false, 0, 100_000);
    harness.generate(1, &prompt(1, 2), 1000);
    harness.steps(2);
    harness.generate(2, &prompt(200, 2000), 5);
    harness.generate(3, &prompt(400, 2000), 5);
    let before = harness.tokens(1).len();
    harness.steps(6);
    assert_eq!(harness.tokens(1).len(), before + 6, "one token a step, whatever is read beside it");
    for step in &harness.script.steps.borrow()[2..] {
        let chunks: Vec<usize> = step.iter().map(|(_, rows)| *rows).filter(|rows| *rows > 1).collect();
        let [a, b] = chunks[..] else { panic!("both prompts are in every step: {step:?}") };
        assert!(a.abs_diff(b) <= 1 && a + b <= 512, "{step:?}");
    }
    harness.cancel(1);
    harness.run();
    assert_eq!((harness.tokens(2), harness.tokens(3)), (alone(endless, &prompt(200, 2000), 5), alone(endless, &prompt(400, 2000), 5)));
}

#[test]
fn a_cancelled_prompt_computes_no_further_chunk_and_what_it_computed_is_reused() {
    for ahead in [false, true] {
        let mut harness = Harness::new(endless, ahead, 10_000, 100_000);
        let long = prompt(1, 2000);
        harness.generate(1, &long, 5);
        harness.steps(2);
        let computed: usize = harness.script.steps.borrow().iter().flatten().map(|(_, rows)| rows).sum();
        assert!(computed < long.len());
        harness.cancel(1);
        harness.run();
        assert_eq!(harness.script.steps.borrow().len(), 2);
        assert_eq!(harness.end(1).unwrap().0, FinishReason::Cancelled);
        harness.generate(2, &long, 5);
        harness.run();
        assert_eq!(harness.end(2).unwrap().1.cached_tokens as usize, computed);
        assert_eq!(harness.tokens(2), alone(endless, &long, 5));
    }
}

#[test]
fn a_prompt_takes_a_cache_that_it_mostly_reuses_and_forks_another() {
    let mut harness = Harness::new(endless, false, 10_000, 100_000);
    let first = prompt(1, 100);
    harness.generate(1, &first, 3);
    harness.run();
    // Shares 30 of 102: a fork, and the entry stays.
    let other = [&first[..30], &[500; 20]].concat();
    harness.generate(2, &other, 3);
    harness.steps(1);
    assert_eq!((harness.script.forks.get(), harness.batch.status().cache_entries), (1, 1));
    harness.run();
    // Shares 90 of 102: the entry is taken.
    let edited = [&first[..90], &[600; 5]].concat();
    harness.generate(3, &edited, 3);
    harness.steps(1);
    assert_eq!((harness.script.forks.get(), harness.batch.status().cache_entries), (1, 1));
    // Shares more with a running sequence than with any entry: a fork of that.
    harness.generate(4, &[&edited[..], &[700]].concat(), 3);
    harness.run();
    assert_eq!(harness.script.forks.get(), 2);
    let cached = [1, 2, 3, 4].map(|id| harness.end(id).unwrap().1.cached_tokens);
    assert_eq!(cached, [0, 30, 90, 95]);
    assert_eq!(harness.tokens(3), alone(endless, &edited, 3));
}

#[test]
fn a_lazy_backend_gets_each_step_before_the_last_one_is_read() {
    let mut harness = Harness::new(endless, true, 10_000, 100_000);
    harness.generate(1, &prompt(1, 10), 6);
    harness.generate(2, &prompt(50, 10), 4);
    for submitted in 1..=4 {
        harness.steps(1);
        assert_eq!((harness.script.steps.borrow().len(), harness.script.reads.get()), (submitted, submitted - 1));
    }
    harness.run();
    for (id, first, tokens_max) in [(1, 1, 6), (2, 50, 4)] {
        assert_eq!(harness.tokens(id), alone(endless, &prompt(first, 10), tokens_max));
        let (reason, usage) = harness.end(id).unwrap();
        assert_eq!((reason, usage.completion_tokens as usize), (FinishReason::Length, tokens_max));
    }
    // Nothing is computed after a token that is known to be the last: the second sequence is not in the fifth step.
    let rows: Vec<usize> = harness.script.steps.borrow().iter().map(|step| step.iter().map(|(_, rows)| rows).sum()).collect();
    assert_eq!(rows, [20, 2, 2, 2, 1, 1]);
}

#[test]
fn a_completion_that_ends_by_itself_wastes_one_row_and_keeps_a_cache_of_known_tokens() {
    let first = (1..).map(|first| prompt(first, 10)).find(|prompt| alone(ending, prompt, 50).len() == 5).unwrap();
    let mut harness = Harness::new(ending, true, 10_000, 100_000);
    harness.generate(1, &first, 50);
    harness.run();
    assert_eq!(harness.end(1).unwrap().0, FinishReason::Eos);
    assert_eq!(harness.tokens(1), alone(ending, &first, 50));
    assert_eq!(harness.script.steps.borrow().len(), 6);
    assert!(harness.batch.submitted.is_none(), "an idle batch holds no step");
    let next = [&first[..], &alone(ending, &first, 50)[..4], &[900]].concat();
    harness.generate(2, &next, 3);
    harness.run();
    assert_eq!(harness.tokens(2), alone(ending, &next, 3));
    assert_eq!(harness.end(2).unwrap().1.cached_tokens as usize, next.len() - 1);
}

#[test]
fn logits_that_are_not_numbers_and_a_panic_of_the_sampler_fail_their_own_request() {
    fn next(tokens: &[u32]) -> Logits {
        match (tokens[0], tokens.len()) {
            (2, 12..) => Logits::NotANumber,
            (3, 12..) => Logits::Missing,
            _ => endless(tokens),
        }
    }
    for ahead in [false, true] {
        let mut harness = Harness::new(next, ahead, 10_000, 100_000);
        for id in 1..=3 {
            // The bias is looked up by a logits processor, which panics where logits are missing.
            let sampling = Sampling { logit_bias: vec![(5, 0.5)], ..Sampling::default() };
            harness.request(id, &prompt(id as u32, 10), 20, sampling);
        }
        harness.run();
        assert_eq!(harness.tokens(1), alone(endless, &prompt(1, 10), 20));
        assert_eq!(harness.end(2).unwrap_err(), Error::Model(ModelError::NonFiniteLogits));
        assert!(matches!(harness.end(3).unwrap_err(), Error::StagePanicked { stage, .. } if stage == "sampler"));
        assert_eq!((harness.tokens(2).len(), harness.tokens(3).len()), (2, 2));
    }
}

#[test]
fn a_replayed_request_continues_after_its_reported_tokens() {
    let first = prompt(1, 10);
    let whole = alone(endless, &first, 12);
    for ahead in [false, true] {
        for reported in 0..=12 {
            let mut harness = Harness::new(endless, ahead, 10_000, 100_000);
            harness.replay(1, &first, 12, Sampling::default(), &whole[..reported]);
            harness.run();
            assert_eq!(harness.tokens(1), whole[reported..], "{reported} tokens were reported, ahead: {ahead}");
            let (reason, usage) = harness.end(1).unwrap();
            assert_eq!((reason, usage.completion_tokens), (FinishReason::Length, 12));
        }
    }
}

#[test]
fn an_error_of_the_backend_ends_the_worker_with_its_cause() {
    let mut harness = Harness::new(endless, true, 0, 100_000);
    harness.generate(1, &prompt(1, 10), 6);
    harness.steps(2);
    harness.script.fails.set(true);
    assert!(harness.batch.step().is_err());
    let last = harness.messages.lock().unwrap().pop();
    assert_eq!(last, Some(FromWorker::Broken { cause: "the backend failed: out of script".into() }));
}

#[derive(Clone, Debug)]
enum Operation {
    Generate {
        first: u32,
        length: usize,
        tokens_max: usize,
    },
    /// Cancels the request of this index, modulo the number of requests so far.
    Cancel(usize),
    Step,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (1u32..4, 1usize..150, 1usize..12).prop_map(|(first, length, tokens_max)| Operation::Generate { first, length, tokens_max }),
        (0usize..20).prop_map(Operation::Cancel),
        Just(Operation::Step),
        Just(Operation::Step),
        Just(Operation::Step),
    ]
}

proptest! {
    /// Whatever is asked and cancelled in between: every request ends once, and reports what it would have reported alone.
    #[test]
    fn random_operations(operations in prop::collection::vec(operation(), 1..80), ahead: bool, cache_bytes in 0usize..400, kv_tokens_max in 1u64..500) {
        let mut harness = Harness::new(ending, ahead, cache_bytes, kv_tokens_max);
        let mut requests = Vec::new();
        for operation in operations {
            match operation {
                Operation::Generate { first, length, tokens_max } => {
                    requests.push((prompt(first, length), tokens_max));
                    harness.generate(requests.len() as u64, &prompt(first, length), tokens_max);
                }
                Operation::Cancel(index) if !requests.is_empty() => harness.cancel((index % requests.len()) as u64 + 1),
                Operation::Cancel(_) => {}
                Operation::Step => harness.steps(1),
            }
            prop_assert!(harness.batch.status().cache_bytes <= cache_bytes as u64);
        }
        harness.run();
        for (id, (prompt, tokens_max)) in (1..).zip(&requests) {
            let (reason, usage) = harness.end(id).unwrap();
            let (tokens, whole) = (harness.tokens(id), alone(ending, prompt, *tokens_max));
            prop_assert_eq!(usage.completion_tokens as usize, tokens.len());
            match reason {
                FinishReason::Cancelled => prop_assert!(whole.starts_with(&tokens) && tokens.len() < whole.len()),
                FinishReason::Eos | FinishReason::Length => prop_assert_eq!(tokens, whole),
                FinishReason::Stop => prop_assert!(false, "no stop sequence was given"),
            }
        }
    }
}
