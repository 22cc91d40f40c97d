//! `doctor --self-test`: kills a worker process in the middle of a completion, which must continue unchanged.

use anyhow::{Context, bail};
use souffleur::actors::{End, ModelInfo, Prompt, Request, Runtime, Sampling};
use std::{
    io::{Stdout, Write, stdout},
    time::{Duration, Instant},
};

const PROMPT: &str = "def median(numbers):\n    \"\"\"The middle one.\"\"\"\n";
/// Long enough to be interrupted at 1 ms per token.
const TOKENS: u32 = 192;
const KILL_AFTER_TOKENS: usize = 8;

/// Prints the completion and the outcome. False when the worker was not replaced or the completion changed.
///
/// # Errors
///
/// A request failed, or no worker process could be killed.
pub(super) async fn run(runtime: &Runtime, model: &str, info: &ModelInfo) -> anyhow::Result<bool> {
    let request = Request {
        model: model.into(),
        prompt: Prompt::Text(PROMPT.into()),
        // Forbid the end tokens, so that the length is fixed.
        sampling: Sampling { logit_bias: info.eos.iter().map(|(token, _)| (*token, -1000.0)).collect(), ..Sampling::default() },
        stop: Vec::new(),
        tokens_max: TOKENS,
        logprobs: None,
    };
    let mut out = stdout();
    let mut reference = Completion::new(runtime, request.clone())?;
    while reference.next(None).await? {}

    writeln!(out, "self-test of {model}: a completion whose worker process is killed\n\n{}", PROMPT.trim_end())?;
    let mut text = Completion::new(runtime, request)?;
    let killed_pid = worker(runtime, model).await.context("the model has no worker process to kill")?;
    while text.tokens < KILL_AFTER_TOKENS {
        if !text.next(Some(&mut out)).await? {
            bail!("the completion ended before its worker could be killed");
        }
    }
    let pid = rustix::process::Pid::from_raw(killed_pid as i32).context("the worker has no valid process id")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("can't kill the worker")?;
    let (killed_at, killed_after) = (Instant::now(), text.tokens);
    write!(out, "⟦worker {killed_pid} killed after {killed_after} tokens⟧")?;
    out.flush()?;
    // Tokens that the worker sent before its death still arrive.
    let (mut pause, mut last_update) = (Duration::ZERO, killed_at);
    while text.next(Some(&mut out)).await? {
        pause = pause.max(last_update.elapsed());
        last_update = Instant::now();
    }
    let new_pid = worker(runtime, model).await;
    let replaced = new_pid.is_some_and(|pid| pid != killed_pid);
    let identical = text.text == reference.text && text.tokens == TOKENS as usize;
    writeln!(out, "\n")?;
    match new_pid {
        Some(pid) if replaced => writeln!(out, "  continued    in worker {pid}, after a pause of {:.0} ms", pause.as_secs_f64() * 1000.0)?,
        Some(_) | None => writeln!(out, "  continued    no: the worker was not replaced")?,
    }
    writeln!(out, "  tokens       {} of {TOKENS}", text.tokens)?;
    writeln!(
        out,
        "  identical    {}",
        if identical { "yes, byte for byte" } else { "no: without the kill, the completion was different" }
    )?;
    Ok(replaced && identical)
}

async fn worker(runtime: &Runtime, model: &str) -> Option<u32> {
    runtime.models().await.into_iter().find(|status| status.name == model)?.worker_pid
}

struct Completion {
    reader: souffleur::actors::Reader,
    text: String,
    tokens: usize,
}

impl Completion {
    fn new(runtime: &Runtime, request: Request) -> anyhow::Result<Self> {
        Ok(Self { reader: runtime.complete(request)?, text: String::new(), tokens: 0 })
    }

    /// Reads the next update; false at the end.
    async fn next(&mut self, out: Option<&mut Stdout>) -> anyhow::Result<bool> {
        let update = self.reader.next().await;
        if let Some(out) = out {
            out.write_all(update.text.as_bytes())?;
            out.flush()?;
        }
        self.text += &update.text;
        self.tokens += update.tokens.len();
        match update.end {
            None => Ok(true),
            Some(End::Done { .. }) => Ok(false),
            Some(End::Failed(error)) => Err(error.into()),
        }
    }
}
