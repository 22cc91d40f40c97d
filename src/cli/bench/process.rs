//! What is measured of whole processes: how soon the first token comes, and how much memory a worker takes.

use super::harness::ModelSize;
use anyhow::{Context, bail};
use serde_json::json;
use souffleur::actors::{End, Prompt, Request, Runtime, Sampling};
use souffleur::config::Config;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Well below 64 tokens.
const TEXT: &str = "fn main() {\n    let name = \"world\";\n    println!(\"Hello, {}!\", ";

/// Milliseconds from the start of `souffleur stdio` to its answer of one token: front, worker and load are in it.
pub(super) fn first_token(options: &[String]) -> anyhow::Result<f64> {
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "complete", "params": { "prompt": TEXT, "maxTokens": 1 } });
    let start = Instant::now();
    let mut command = Command::new(crate::cli::program()?);
    let mut child = command.arg("stdio").args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().expect("piped");
    writeln!(input, "{call}")?;
    let mut answer = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut answer)?;
    let time = start.elapsed();
    drop(input);
    child.wait()?;
    if !answer.contains("\"result\"") {
        bail!("`souffleur stdio` answered {answer:?}");
    }
    Ok(time.as_secs_f64() * 1e3)
}

/// What a worker that loads the model and writes a little is like.
pub(super) struct Worker {
    pub(super) load_ms: f64,
    /// Beyond weights once, keys and values: when all is done, and at the worst moment.
    pub(super) more_mb: f64,
    pub(super) peak_mb: f64,
}

impl Worker {
    pub(super) fn run(config: &Config, size: &ModelSize) -> anyhow::Result<Self> {
        let runtime = Runtime::start(config.clone())?;
        let name = config.models()[0].name.clone();
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let start = Instant::now();
            runtime.load(&name, |_, _| {}).await?;
            let load_ms = start.elapsed().as_secs_f64() * 1e3;
            let request = Request {
                model: name,
                prompt: Prompt::Text(TEXT.into()),
                sampling: Sampling { temperature: 0.0, ..Sampling::default() },
                stop: Vec::new(),
                tokens_max: 16,
                logprobs: None,
            };
            let mut reader = runtime.complete(request)?;
            loop {
                match reader.next().await.end {
                    None => {}
                    Some(End::Done { .. }) => break,
                    Some(End::Failed(error)) => return Err(error.into()),
                }
            }
            let status = runtime.status().await.models.into_iter().next().context("one model")?;
            let (Some(pid), Some(decoder)) = (status.worker_pid, status.decoder) else { bail!("the worker did not say how it is") };
            let known = size.weight_bytes + decoder.cache_bytes + decoder.running_bytes;
            let mb = |key| anyhow::Ok((memory(pid, key)? as f64 - known as f64) / 1e6);
            let worker = Self { load_ms, more_mb: mb("VmRSS")?, peak_mb: mb("VmHWM")? };
            runtime.shutdown(Duration::ZERO).await;
            Ok(worker)
        })
    }
}

/// Bytes that a process has in memory, as the system counts them.
fn memory(pid: u32, key: &str) -> anyhow::Result<u64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("this system does not tell how much memory a process has")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).with_context(|| format!("no {key}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
