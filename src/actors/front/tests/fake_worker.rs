//! A scripted worker: a task that implements the wire protocol on channels and follows commands in its prompts.
//!
//! Commands are words of the prompt. The question `Tokenize("die")` ends the worker. `die@3` ends the worker instead of computing token 3, and `die-once@3` only in the first
//! worker of a test. `stall@3` blocks the first worker's decode loop at token 3. `slow` makes each token take a second. Token
//! `i` has the text `i;`, and its last byte is held back until the next token, as a partial stop sequence is.

use crate::actors::front::link::{Link, WorkerLauncher};
use crate::actors::{
    Answer, DecoderStatus, End, Error, FimOrder, FinishReason, FromWorker, ModelInfo, Prompt, Question, Replay, Request, Sampled, Step,
    ToWorker, Usage, WIRE_VERSION,
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
pub(super) const STEP_TIME: Duration = Duration::from_millis(1);
/// Virtual time of a load.
pub(super) const LOAD_TIME: Duration = Duration::from_millis(20);

/// How the next worker starts. Workers without a plan load normally.
#[derive(Clone, Debug)]
pub(super) enum StartPlan {
    Load,
    /// Its files contain another model.
    LoadAnother,
    NotStarted,
    PanicStarting,
    /// It has this wire version.
    Hello(u32),
    DieLoading,
    StallLoading,
    /// It reports this error instead of loading.
    FailLoad(Error),
}

/// The fake workers of one test: their plans, and what they did.
#[derive(Default)]
pub(super) struct FakeWorkers {
    pub(super) plans: Mutex<Vec<StartPlan>>,
    /// Messages received by workers, without pings.
    pub(super) received: Mutex<Vec<String>>,
    pub(super) started: AtomicU32,
    pub(super) running: AtomicU32,
    pub(super) pings: AtomicU32,
    /// A new value kills all workers.
    pub(super) kill: watch::Sender<()>,
    /// Workers that ended or failed to start without being shut down.
    pub(super) deaths: AtomicU32,
}

impl FakeWorkers {
    pub(super) fn launch(self: &Arc<Self>) -> WorkerLauncher {
        let workers = self.clone();
        Arc::new(move |_| {
            let mut plans = workers.plans.lock().unwrap();
            let plan = if plans.is_empty() { StartPlan::Load } else { plans.remove(0) };
            drop(plans);
            match plan {
                StartPlan::NotStarted => {
                    workers.deaths.fetch_add(1, Ordering::SeqCst);
                    return Err(io::ErrorKind::NotFound.into());
                }
                StartPlan::PanicStarting => panic!("as planned"),
                StartPlan::Load
                | StartPlan::LoadAnother
                | StartPlan::Hello(_)
                | StartPlan::DieLoading
                | StartPlan::StallLoading
                | StartPlan::FailLoad(_) => {}
            }
            // Small, so that both sides meet a full queue.
            let (to, mut inbox) = mpsc::channel(2);
            let (outbox, from) = mpsc::channel(2);
            let number = workers.started.fetch_add(1, Ordering::SeqCst) + 1;
            workers.running.fetch_add(1, Ordering::SeqCst);
            let (workers, mut killed) = (workers.clone(), workers.kill.subscribe());
            tokio::task::spawn_local(async move {
                let mut worker = Worker { workers: workers.clone(), number, outbox, running: BTreeMap::new(), steps: 0 };
                tokio::select! {
                    _ = worker.run(&mut inbox, plan) => {}
                    _ = killed.changed() => {}
                }
                if !inbox.is_closed() {
                    workers.deaths.fetch_add(1, Ordering::SeqCst);
                }
                workers.running.fetch_sub(1, Ordering::SeqCst);
            });
            Ok(Link::channel(to, from))
        })
    }

    pub(super) fn received(&self) -> Vec<String> {
        std::mem::take(&mut self.received.lock().unwrap())
    }
}

struct Sequence {
    request: Request,
    /// Tokens so far, and the bytes of their text that were delivered.
    tokens: u32,
    delivered: usize,
}

struct Worker {
    workers: Arc<FakeWorkers>,
    /// 1 is the first worker of the test.
    number: u32,
    outbox: mpsc::Sender<FromWorker>,
    running: BTreeMap<u64, Sequence>,
    steps: u64,
}

impl Worker {
    /// `None` ends the worker, here and below.
    async fn run(&mut self, inbox: &mut mpsc::Receiver<ToWorker>, plan: StartPlan) -> Option<()> {
        let version = if let StartPlan::Hello(version) = plan { version } else { WIRE_VERSION };
        self.send(FromWorker::Hello { version }).await?;
        match inbox.recv().await? {
            ToWorker::Load { .. } => self.load(plan).await?,
            ToWorker::Inspect { .. } => self.send(FromWorker::Loaded(Ok(ModelInfo { weight_bytes: 1, ..model_info() }))).await?,
            other => panic!("{other:?} before a load"),
        }
        loop {
            if self.running.is_empty() {
                self.receive(inbox.recv().await?).await?;
            }
            while let Ok(message) = inbox.try_recv() {
                self.receive(message).await?;
            }
            if inbox.is_closed() {
                return None;
            }
            sleep(STEP_TIME).await;
            self.step().await?;
        }
    }

    async fn load(&self, plan: StartPlan) -> Option<()> {
        for done in 1..=2 {
            sleep(LOAD_TIME / 2).await;
            self.send(FromWorker::Loading { done, total: 2 }).await?;
        }
        match plan {
            StartPlan::DieLoading => None,
            StartPlan::StallLoading => self.stall().await,
            StartPlan::FailLoad(error) => self.send(FromWorker::Loaded(Err(error))).await,
            StartPlan::LoadAnother => self.send(FromWorker::Loaded(Ok(ModelInfo { vocab_size: 6, ..model_info() }))).await,
            StartPlan::Load | StartPlan::NotStarted | StartPlan::PanicStarting | StartPlan::Hello(_) => {
                self.send(FromWorker::Loaded(Ok(model_info()))).await
            }
        }
    }

    /// Waits until it is killed.
    async fn stall(&self) -> Option<()> {
        self.outbox.closed().await;
        None
    }

    async fn send(&self, message: FromWorker) -> Option<()> {
        self.outbox.send(message).await.ok()
    }

    fn log(&self, message: &str, id: u64) {
        self.workers.received.lock().unwrap().push(format!("{message} {id}"));
    }

    async fn receive(&mut self, message: ToWorker) -> Option<()> {
        match message {
            ToWorker::Generate { id, request, replay: Replay { tokens, delivered_bytes } } => {
                self.log(if tokens.is_empty() { "generate" } else { "replay" }, id);
                let sequence = Sequence { request, tokens: tokens.len() as u32, delivered: delivered_bytes as usize };
                assert!(self.running.insert(id, sequence).is_none(), "request {id} was sent twice");
            }
            ToWorker::Cancel { id } => {
                self.log("cancel", id);
                if let Some(sequence) = self.running.remove(&id) {
                    self.end(id, &sequence, FinishReason::Cancelled).await?;
                }
            }
            ToWorker::Ask { id, question } => {
                self.log("ask", id);
                let answer = match question {
                    Question::Tokenize(text) if text == "die" => return None,
                    Question::Tokenize(text) => Answer::Tokens(text.bytes().map(u32::from).collect()),
                    Question::Detokenize(_) | Question::Render(_) => Answer::Text(String::new()),
                };
                self.send(FromWorker::Answer { id, answer: Ok(answer) }).await?;
            }
            ToWorker::Ping { id } => {
                self.workers.pings.fetch_add(1, Ordering::SeqCst);
                let status = DecoderStatus { steps: self.steps, running: self.running.len() as u32, ..DecoderStatus::default() };
                self.send(FromWorker::Pong { id, status }).await?;
            }
            ToWorker::Load { .. } | ToWorker::Inspect { .. } => panic!("a worker loads once"),
        }
        Some(())
    }

    async fn step(&mut self) -> Option<()> {
        self.steps += 1;
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            let sequence = self.running.get_mut(&id).expect("a key of this map");
            let Prompt::Text(prompt) = &sequence.request.prompt else { panic!("the prompt is not a text") };
            let token = sequence.tokens;
            for word in prompt.split(' ') {
                if word == "slow" {
                    sleep(1000 * STEP_TIME).await;
                }
                match word.split_once('@').map(|(command, at)| (command, at.parse() == Ok(token))) {
                    Some(("die", true)) => return None,
                    Some(("die-once", true)) if self.number == 1 => return None,
                    Some(("stall", true)) if self.number == 1 => return self.stall().await,
                    Some(_) | None => {}
                }
            }
            sequence.tokens += 1;
            let last = sequence.tokens == sequence.request.tokens_max;
            let text = expected_text(sequence.tokens);
            let upto = if last { text.len() } else { text.len() - 1 };
            let step = Step { text: text[sequence.delivered..upto].to_owned(), tokens: vec![sampled(token)] };
            sequence.delivered = upto;
            self.send(FromWorker::Step { id, step }).await?;
            if last {
                let sequence = self.running.remove(&id).expect("found above");
                self.end(id, &sequence, FinishReason::Length).await?;
            }
        }
        Some(())
    }

    async fn end(&self, id: u64, sequence: &Sequence, reason: FinishReason) -> Option<()> {
        let usage = Usage { completion_tokens: sequence.tokens, ..Usage::default() };
        self.send(FromWorker::End { id, end: End::Done { reason, usage, applied: sequence.request.sampling.clone() } }).await
    }
}

/// The text of the first `tokens` tokens.
pub(super) fn expected_text(tokens: u32) -> String {
    (0..tokens).map(|token| format!("{token};")).collect()
}

fn sampled(token: u32) -> Sampled {
    Sampled { token, logprob: 0.0, top: Vec::new() }
}

pub(in crate::actors) fn model_info() -> ModelInfo {
    ModelInfo {
        architecture: "LlamaForCausalLM".into(),
        family: "fake".into(),
        quantization: "none".into(),
        parameters: 1,
        weight_bytes: 2,
        layers: 3,
        hidden_size: 4,
        vocab_size: 5,
        context_length: 6,
        eos: vec![(0, "<eos>".into())],
        fim: Some(FimOrder::SuffixPrefixMiddle),
        backend: "fake".into(),
        threads: 1,
    }
}
