//! Measurements of whole processes: the time to the first token, and the memory of a worker process.

use super::harness::ModelSize;
use anyhow::{Context, bail};
use serde_json::json;
use souffleur::actors::{End, Prompt, Request, Runtime, Sampling};
use souffleur::config::Config;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Fewer than 64 tokens.
const TEXT: &str = "fn main() {\n    let name = \"world\";\n    println!(\"Hello, {}!\", ";

/// Milliseconds from the start of `souffleur stdio` to its response with one token. Includes both processes and the load.
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

/// Measurements of a worker process that loads the model and decodes a few tokens.
pub(super) struct Worker {
    pub(super) load_ms: f64,
    /// Memory beyond one copy of the weights and the KV cache: at the end, and at the peak.
    pub(super) overhead_mb: f64,
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
            let (Some(pid), Some(decoder)) = (status.worker_pid, status.decoder) else { bail!("the worker reports no status") };
            let known = size.weight_bytes + decoder.cache_bytes + decoder.running_bytes;
            let mb = |key| anyhow::Ok((memory(pid, key)? as f64 - known as f64) / 1e6);
            let worker = Self { load_ms, overhead_mb: mb("VmRSS")?, peak_mb: mb("VmHWM")? };
            runtime.shutdown(Duration::ZERO).await;
            Ok(worker)
        })
    }
}

/// A memory size of a process in bytes, from `/proc/PID/status`.
fn memory(pid: u32, key: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("this system does not report the memory of a process")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).with_context(|| format!("no {key}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
