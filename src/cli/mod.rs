//! The command line: arguments, and the `Config` they give.

pub(crate) mod bench;
pub(crate) mod complete;
pub(crate) mod doctor;
mod selftest;
pub(crate) mod serve;
pub(crate) mod stdio;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use souffleur::actors::{Activations, CpuSettings, Error, ModelInfo, ModelSource, Runtime, Settings, worker};
use souffleur::config::{Config, Isolation, Limits, Model, RestartLimit};
use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing_subscriber::filter::{EnvFilter, ParseError};

pub(crate) const VERSION: &str = if cfg!(feature = "failpoints") { WITH_FAILPOINTS } else { env!("CARGO_PKG_VERSION") };
/// A build with failpoints is for tests only, and its version says so.
const WITH_FAILPOINTS: &str = concat!(env!("CARGO_PKG_VERSION"), " with failpoints, for tests only");

const EXAMPLES: &str = "\
Examples:
  souffleur complete src/main.rs:12    complete the end of line 12, in the terminal
  souffleur stdio                      run as a JSON-RPC server for an editor, on stdin and stdout
  souffleur serve                      run as a JSON-RPC server on a WebSocket, for web pages and tools
  souffleur doctor                     check this machine and the model

Run `souffleur <COMMAND> --help` for the options of a command. The embedded model needs no download and no network; use \
-m to run another model.";

/// Completes code with a language model that runs on this machine
#[derive(Parser)]
#[command(version = VERSION, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) log: Log,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Complete a file at a position, and print the completion
    Complete(complete::Complete),
    /// Run a JSON-RPC server on stdin and stdout, for an editor
    Stdio(stdio::Stdio),
    /// Run a JSON-RPC server on a WebSocket, for web pages and tools
    Serve(serve::Serve),
    /// Check this machine and the model, and report problems
    Doctor(doctor::Doctor),
    /// Measure the speed of a model on this machine
    Bench(bench::Bench),
    /// Run one model as the worker process of another souffleur process, which starts it
    #[command(hide = true)]
    Worker,
}

#[derive(Args)]
#[command(next_help_heading = "Log (on stderr)")]
pub(crate) struct Log {
    /// What to log: error, warn, info, debug, or a filter such as souffleur=debug. Prompts are never logged. [default: warn for serve and stdio, error for the other commands]
    #[arg(long = "log", value_name = "FILTER", env = "SOUFFLEUR_LOG", value_parser = filter, global = true)]
    filter: Option<String>,
    /// The format of log lines
    #[arg(long = "log-format", value_enum, default_value_t = LogFormat::Text, global = true)]
    format: LogFormat,
}

fn filter(text: &str) -> Result<String, ParseError> {
    EnvFilter::try_new(text).map(|_| text.into())
}

impl Log {
    /// Fills in the command's default filter.
    pub(crate) fn with_default_filter(self, command: &Command) -> Self {
        // actix_http logs every malformed request as an error, and any local process could fill the log with them.
        // The other commands print their own errors.
        let serves = matches!(command, Command::Serve(_) | Command::Stdio(_));
        let default = || if serves { "warn,actix_http=off" } else { "error" }.into();
        Self { filter: Some(self.filter.unwrap_or_else(default)), ..self }
    }

    /// The arguments that give a worker process the same log.
    fn arguments(&self) -> Vec<String> {
        let format = match self.format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        let filter = self.filter.iter().flat_map(|filter| ["--log", filter]);
        filter.chain(["--log-format", format]).map(String::from).collect()
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Sends logs and panics to stderr: stdout carries the protocol.
pub(crate) fn log(log: &Log) {
    worker::log_panics_without_payload();
    let filter = EnvFilter::new(log.filter.as_deref().unwrap_or_default());
    // A line that can't be written is dropped. Reporting that on stderr would fail, too, and panic.
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match log.format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct Models {
    /// The model: `embedded`, a .gguf file, or a folder with config.json, tokenizer.json and *.safetensors. Repeat it to serve several models; the first is the default
    #[arg(short, long = "model", value_name = "MODEL", default_value = "embedded")]
    models: Vec<String>,
    /// Number of compute threads; 0 means one for each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1024))]
    threads: u32,
    /// Precision of the activations that are multiplied with quantized weights: int8 is faster, f32 is exact
    #[arg(long, value_enum, default_value_t = Precision::Int8)]
    activations: Precision,
    /// Size of the prompt cache in MiB: a prompt that starts like an earlier one is only computed from where they differ; 0 turns it off
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    cache: u32,
    /// Unload a model after this many minutes without a request; 0 keeps it loaded
    #[arg(long, value_name = "MINUTES", default_value_t = 0)]
    keep_alive: u32,
    /// Kill and restart a worker process that has requests but makes no progress for this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u32).range(1..))]
    stall_limit: u32,
    /// Fail a request whose prompt takes longer than this many seconds to tokenize, and restart the worker process
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = value_parser!(u32).range(1..))]
    prompt_limit: u32,
    /// How many times a worker process may die within 30 seconds before its model is marked as failed
    #[arg(long, value_name = "N", default_value_t = RestartLimit::default().deaths)]
    restarts: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    Int8,
    F32,
}

impl Models {
    pub(crate) fn config(&self, log: &Log) -> anyhow::Result<Config> {
        let models = self.models.iter().map(|text| model(text)).collect::<anyhow::Result<_>>()?;
        let activations = match self.activations {
            Precision::Int8 => Activations::Int8,
            Precision::F32 => Activations::F32,
        };
        let seconds = |limit| Duration::from_secs(u64::from(limit));
        let (decoder_silence, prompter_time) = (seconds(self.stall_limit), seconds(self.prompt_limit));
        let isolation = Isolation::Process { program: program()?, arguments: log.arguments() };
        let config = Config::new(models, isolation)?
            .with_settings(Settings { cpu: CpuSettings { threads: self.threads, activations }, cache_bytes: u64::from(self.cache) << 20 })
            .with_limits(Limits { decoder_silence, prompter_time, ..Limits::default() })?
            .with_restarts(RestartLimit { deaths: self.restarts, ..RestartLimit::default() })?
            .with_keep_alive((self.keep_alive > 0).then(|| Duration::from_secs(u64::from(self.keep_alive) * 60)))?;
        Ok(config)
    }
}

const MODEL_FILES: &str = "a model is a .gguf file, or a folder with config.json, tokenizer.json and *.safetensors";

/// The model's name in requests is the folder's name, or the file's name without `.gguf`. Requests never contain a path.
fn model(text: &str) -> anyhow::Result<Model> {
    if text == "embedded" {
        return Ok(Model { name: text.into(), source: ModelSource::Embedded });
    }
    let path = Path::new(text).canonicalize().with_context(|| format!("model {text:?} is neither `embedded` nor a path that exists"))?;
    let word = |part: Option<&OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    if path.is_dir() {
        for file in ["config.json", "tokenizer.json"] {
            if !path.join(file).exists() {
                bail!("model folder {text:?} has no {file}; {MODEL_FILES}");
            }
        }
        return Ok(Model { name: word(path.file_name()), source: ModelSource::Folder(path) });
    }
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        bail!("model {text:?} is not a .gguf file; {MODEL_FILES}");
    }
    Ok(Model { name: word(path.file_stem()), source: ModelSource::File(path) })
}

/// The path of this program. On Linux it stays valid when the file has been replaced since the start.
fn program() -> anyhow::Result<PathBuf> {
    if cfg!(target_os = "linux") {
        Ok("/proc/self/exe".into())
    } else {
        std::env::current_exe().context("can't find the path of this program")
    }
}

/// Waits shorter than this show no progress.
const PROGRESS_DELAY: Duration = Duration::from_millis(500);

/// Loads a model, with progress on the terminal.
async fn load(runtime: &Runtime, model: &str) -> Result<ModelInfo, Error> {
    let start = Instant::now();
    let loaded = runtime.load(model, |done, total| {
        if start.elapsed() > PROGRESS_DELAY {
            show_status(&format!("loading {model}: {} %", done.saturating_mul(100) / total.max(1)));
        }
    });
    let loaded = loaded.await;
    show_status("");
    loaded
}

/// Shows a status on the terminal, in place of the last one.
fn show_status(status: &str) {
    if std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr(), "\r\x1b[K{status}");
    }
}

/// Prints a line on stderr. Errors are ignored: stderr may be closed.
pub(crate) fn print_stderr(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// How long running requests may go on after a signal to stop: enough to finish a line.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Waits for a signal to stop, or for the end of the runtime's supervision, then shuts the runtime down.
async fn run_until_stopped(runtime: &Runtime) {
    tokio::select! {
        () = stop_signal() => {}
        () = runtime.ended() => tracing::error!("the supervisor has ended; shutting down"),
    }
    runtime.shutdown(SHUTDOWN_GRACE).await;
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => drop(signals.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop(SignalKind::interrupt()) => {}
        () = stop(SignalKind::terminate()) => {}
        // The terminal was closed.
        () = stop(SignalKind::hangup()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_comes_from_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(at("coder")).unwrap();
        std::fs::create_dir(at("empty")).unwrap();
        for file in ["coder/config.json", "coder/tokenizer.json", "coder-1.5b.Q4.gguf", "UP.GGUF", "notes.txt"] {
            std::fs::write(at(file), "").unwrap();
        }
        let name = |text: &str| model(text).map(|model| model.name).map_err(|error| error.to_string());
        assert_eq!(name("embedded").unwrap(), "embedded");
        assert_eq!(name(&at("coder")).unwrap(), "coder");
        assert_eq!(name(&at("coder-1.5b.Q4.gguf")).unwrap(), "coder-1.5b.Q4");
        assert_eq!(name(&at("UP.GGUF")).unwrap(), "UP");
        assert!(name(&at("notes.txt")).unwrap_err().contains("not a .gguf file"));
        assert!(name(&at("absent.gguf")).unwrap_err().contains("nor a path that exists"));
        assert!(name(&at("empty")).unwrap_err().contains("has no config.json"));
    }
}
