//! `doctor --self-test`: a worker of our own is killed in the middle of a text, which must go on as if nothing had been.

use anyhow::{Context, bail};
use souffleur::actors::{End, ModelInfo, Prompt, Request, Runtime, Sampling};
use std::{
    io::{Stdout, Write, stdout},
    time::{Duration, Instant},
};

const PROMPT: &str = "def median(numbers):\n    \"\"\"The middle one.\"\"\"\n";
/// Long enough to be killed in the middle of, also when a token takes a millisecond.
const TOKENS: u32 = 192;
const KILLED_AFTER: usize = 8;

/// Writes the text as it comes and what became of it; false when it is not what it would have been.
pub(super) async fn run(runtime: &Runtime, model: &str, card: &ModelInfo) -> anyhow::Result<bool> {
    let request = Request {
        model: model.into(),
        prompt: Prompt::Text(PROMPT.into()),
        // No end but its length.
        sampling: Sampling { logit_bias: card.eos.iter().map(|(token, _)| (*token, -1000.0)).collect(), ..Sampling::default() },
        stop: Vec::new(),
        tokens_max: TOKENS,
        logprobs: None,
    };
    let mut out = stdout();
    let mut undisturbed = Text::new(runtime, request.clone())?;
    while undisturbed.next(None).await? {}

    writeln!(out, "self-test of {model}: a text whose worker is killed\n\n{}", PROMPT.trim_end())?;
    let mut text = Text::new(runtime, request)?;
    let victim = worker(runtime, model).await.context("the model has no worker process to kill")?;
    while text.tokens < KILLED_AFTER {
        if !text.next(Some(&mut out)).await? {
            bail!("the text ended before its worker could be killed");
        }
    }
    let pid = rustix::process::Pid::from_raw(victim as i32).context("a process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("can't kill our own worker")?;
    let (killed_at, killed_after) = (Instant::now(), text.tokens);
    write!(out, "⟦worker {victim} killed after {killed_after} tokens⟧")?;
    out.flush()?;
    // What the worker had written before it died is still read.
    let (mut pause, mut heard) = (Duration::ZERO, killed_at);
    while text.next(Some(&mut out)).await? {
        pause = pause.max(heard.elapsed());
        heard = Instant::now();
    }
    let successor = worker(runtime, model).await;
    let replaced = successor.is_some_and(|pid| pid != victim);
    let identical = text.text == undisturbed.text && text.tokens == TOKENS as usize;
    writeln!(out, "\n")?;
    match successor {
        Some(pid) if replaced => writeln!(out, "  went on      in worker {pid}, with a pause of {:.0} ms", pause.as_secs_f64() * 1000.0)?,
        Some(_) | None => writeln!(out, "  went on      no: the worker was not replaced")?,
    }
    writeln!(out, "  tokens       {} of {TOKENS}", text.tokens)?;
    writeln!(out, "  identical    {}", if identical { "yes, to the byte" } else { "no: undisturbed it was another text" })?;
    Ok(replaced && identical)
}

async fn worker(runtime: &Runtime, model: &str) -> Option<u32> {
    runtime.models().await.into_iter().find(|status| status.name == model)?.worker_pid
}

struct Text {
    reader: souffleur::actors::Reader,
    text: String,
    tokens: usize,
}

impl Text {
    fn new(runtime: &Runtime, request: Request) -> anyhow::Result<Self> {
        Ok(Self { reader: runtime.complete(request)?, text: String::new(), tokens: 0 })
    }

    /// Reads what is new; false at the end.
    async fn next(&mut self, out: Option<&mut Stdout>) -> anyhow::Result<bool> {
        let news = self.reader.next().await;
        if let Some(out) = out {
            out.write_all(news.text.as_bytes())?;
            out.flush()?;
        }
        self.text += &news.text;
        self.tokens += news.tokens.len();
        match news.end {
            None => Ok(true),
            Some(End::Done { .. }) => Ok(false),
            Some(End::Failed(error)) => Err(error.into()),
        }
    }
}
