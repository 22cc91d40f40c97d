//! A worker for tests: a task that speaks the wire on channels and does what its prompts say.
//!
//! A prompt is words, each of which may happen once a token: `die@3` ends the worker instead of token 3, in every life;
//! `die-once@3` only in a worker's first life; `stall@3` stops that one's decode loop; `slow` takes a second a token. Token `i` of a prompt has the text
//! `i;`, of which the last byte is held back until the next token, as stop sequences do.

use super::link::{Launch, Link};
use crate::actors::{
    Answer, DecoderStatus, End, Error, FimOrder, FinishReason, FromWorker, ModelInfo, Prompt, Question, Replay, Request, Sampled, Step,
    ToWorker, Usage, WIRE,
};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

/// Virtual time of one decode step.
pub(super) const STEP: Duration = Duration::from_millis(1);
/// Virtual time of a load.
pub(super) const LOAD: Duration = Duration::from_millis(20);

/// How the next worker starts; once there are no plans left, well.
#[derive(Clone, Debug)]
pub(super) enum Plan {
    Load,
    /// Its files were replaced.
    LoadAnother,
    NotStarted,
    PanicStarting,
    Hello(u32),
    DieLoading,
    StallLoading,
    Refuse(Error),
}

#[derive(Default)]
pub(super) struct World {
    pub(super) plans: Mutex<Vec<Plan>>,
    /// What workers were sent, but pings.
    pub(super) heard: Mutex<Vec<String>>,
    pub(super) started: AtomicU32,
    pub(super) running: AtomicU32,
    pub(super) pings: AtomicU32,
    /// A new value kills every worker there is.
    pub(super) kill: watch::Sender<()>,
    /// Workers that ended, or were not started, while their front wanted them.
    pub(super) deaths: AtomicU32,
}

impl World {
    pub(super) fn launch(self: &Arc<Self>) -> Launch {
        let world = self.clone();
        Arc::new(move |_| {
            let mut plans = world.plans.lock().unwrap();
            let plan = if plans.is_empty() { Plan::Load } else { plans.remove(0) };
            drop(plans);
            match plan {
                Plan::NotStarted => {
                    world.deaths.fetch_add(1, Ordering::SeqCst);
                    return Err(io::ErrorKind::NotFound.into());
                }
                Plan::PanicStarting => panic!("as planned"),
                Plan::Load | Plan::LoadAnother | Plan::Hello(_) | Plan::DieLoading | Plan::StallLoading | Plan::Refuse(_) => {}
            }
            // Few enough that both sides meet a full queue.
            let (to, mut inbox) = mpsc::channel(2);
            let (outbox, from) = mpsc::channel(2);
            let life = world.started.fetch_add(1, Ordering::SeqCst) + 1;
            world.running.fetch_add(1, Ordering::SeqCst);
            let (world, mut killed) = (world.clone(), world.kill.subscribe());
            tokio::task::spawn_local(async move {
                let mut worker = Worker { world: world.clone(), life, outbox, running: BTreeMap::new(), steps: 0 };
                tokio::select! {
                    _ = worker.run(&mut inbox, plan) => {}
                    _ = killed.changed() => {}
                }
                if !inbox.is_closed() {
                    world.deaths.fetch_add(1, Ordering::SeqCst);
                }
                world.running.fetch_sub(1, Ordering::SeqCst);
            });
            Ok(Link::channel(to, from))
        })
    }

    pub(super) fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

struct Sequence {
    request: Request,
    /// Tokens so far, and the bytes of their text that were delivered.
    tokens: u32,
    delivered: usize,
}

struct Worker {
    world: Arc<World>,
    life: u32,
    outbox: mpsc::Sender<FromWorker>,
    running: BTreeMap<u64, Sequence>,
    steps: u64,
}

impl Worker {
    /// `None`, here and below, is a worker's end.
    async fn run(&mut self, inbox: &mut mpsc::Receiver<ToWorker>, plan: Plan) -> Option<()> {
        let wire = if let Plan::Hello(wire) = plan { wire } else { WIRE };
        self.say(FromWorker::Hello { wire }).await?;
        match inbox.recv().await? {
            ToWorker::Load { .. } => self.load(plan).await?,
            ToWorker::Inspect { .. } => self.say(FromWorker::Loaded(Ok(ModelInfo { weight_bytes: 1, ..model_info() }))).await?,
            other => panic!("{other:?} before a load"),
        }
        loop {
            if self.running.is_empty() {
                self.hear(inbox.recv().await?).await?;
            }
            while let Ok(message) = inbox.try_recv() {
                self.hear(message).await?;
            }
            if inbox.is_closed() {
                return None;
            }
            sleep(STEP).await;
            self.step().await?;
        }
    }

    async fn load(&self, plan: Plan) -> Option<()> {
        for done in 1..=2 {
            sleep(LOAD / 2).await;
            self.say(FromWorker::Loading { done, total: 2 }).await?;
        }
        match plan {
            Plan::DieLoading => None,
            Plan::StallLoading => self.stall().await,
            Plan::Refuse(error) => self.say(FromWorker::Loaded(Err(error))).await,
            Plan::LoadAnother => self.say(FromWorker::Loaded(Ok(ModelInfo { vocab_size: 6, ..model_info() }))).await,
            Plan::Load | Plan::NotStarted | Plan::PanicStarting | Plan::Hello(_) => self.say(FromWorker::Loaded(Ok(model_info()))).await,
        }
    }

    /// Until it is killed.
    async fn stall(&self) -> Option<()> {
        self.outbox.closed().await;
        None
    }

    async fn say(&self, message: FromWorker) -> Option<()> {
        self.outbox.send(message).await.ok()
    }

    fn note(&self, what: &str, id: u64) {
        self.world.heard.lock().unwrap().push(format!("{what} {id}"));
    }

    async fn hear(&mut self, message: ToWorker) -> Option<()> {
        match message {
            ToWorker::Generate { id, request, replay: Replay { tokens, delivered_bytes } } => {
                self.note(if tokens.is_empty() { "generate" } else { "replay" }, id);
                let sequence = Sequence { request, tokens: tokens.len() as u32, delivered: delivered_bytes as usize };
                assert!(self.running.insert(id, sequence).is_none(), "request {id} was sent twice");
            }
            ToWorker::Cancel { id } => {
                self.note("cancel", id);
                if let Some(sequence) = self.running.remove(&id) {
                    self.end(id, &sequence, FinishReason::Cancelled).await?;
                }
            }
            ToWorker::Ask { id, question } => {
                self.note("ask", id);
                let answer = match question {
                    Question::Tokenize(text) if text == "die" => return None,
                    Question::Tokenize(text) => Answer::Tokens(text.bytes().map(u32::from).collect()),
                    Question::Detokenize(_) | Question::Render(_) => Answer::Text(String::new()),
                };
                self.say(FromWorker::Answer { id, answer: Ok(answer) }).await?;
            }
            ToWorker::Ping { id } => {
                self.world.pings.fetch_add(1, Ordering::SeqCst);
                let status = DecoderStatus { steps: self.steps, running: self.running.len() as u32, ..DecoderStatus::default() };
                self.say(FromWorker::Pong { id, status }).await?;
            }
            ToWorker::Load { .. } | ToWorker::Inspect { .. } => panic!("a worker loads once"),
        }
        Some(())
    }

    async fn step(&mut self) -> Option<()> {
        self.steps += 1;
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            let sequence = self.running.get_mut(&id).expect("a key of this map");
            let Prompt::Text(prompt) = &sequence.request.prompt else { panic!("scripts are texts") };
            let token = sequence.tokens;
            for word in prompt.split(' ') {
                if word == "slow" {
                    sleep(1000 * STEP).await;
                }
                match word.split_once('@').map(|(what, at)| (what, at.parse() == Ok(token))) {
                    Some(("die", true)) => return None,
                    Some(("die-once", true)) if self.life == 1 => return None,
                    Some(("stall", true)) if self.life == 1 => return self.stall().await,
                    Some(_) | None => {}
                }
            }
            sequence.tokens += 1;
            let last = sequence.tokens == sequence.request.tokens_max;
            let text = text(sequence.tokens);
            let upto = if last { text.len() } else { text.len() - 1 };
            let step = Step { text: text[sequence.delivered..upto].to_owned(), tokens: vec![sampled(token)] };
            sequence.delivered = upto;
            self.say(FromWorker::Step { id, step }).await?;
            if last {
                let sequence = self.running.remove(&id).expect("it is there, above");
                self.end(id, &sequence, FinishReason::Length).await?;
            }
        }
        Some(())
    }

    async fn end(&self, id: u64, sequence: &Sequence, reason: FinishReason) -> Option<()> {
        let usage = Usage { completion_tokens: sequence.tokens, ..Usage::default() };
        self.say(FromWorker::End { id, end: End::Done { reason, usage, applied: sequence.request.sampling.clone() } }).await
    }
}

/// The text of this many tokens.
pub(super) fn text(tokens: u32) -> String {
    (0..tokens).map(|token| format!("{token};")).collect()
}

fn sampled(token: u32) -> Sampled {
    Sampled { token, logprob: 0.0, top: Vec::new() }
}

pub(in crate::actors) fn model_info() -> ModelInfo {
    ModelInfo {
        architecture: "LlamaForCausalLM".into(),
        family: "script".into(),
        quantization: "none".into(),
        parameters: 1,
        weight_bytes: 2,
        layers: 3,
        hidden_size: 4,
        vocab_size: 5,
        context_length: 6,
        eos: vec![(0, "<eos>".into())],
        fim: Some(FimOrder::SuffixPrefixMiddle),
        backend: "script".into(),
        threads: 1,
    }
}
