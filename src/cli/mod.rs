//! The command line: what may be asked, and how it becomes a `Config`.

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
/// A build for tests must be told from every other one.
const WITH_FAILPOINTS: &str = concat!(env!("CARGO_PKG_VERSION"), " with failpoints, for tests only");

const EXAMPLES: &str = "\
Examples:
  souffleur complete src/main.rs:12    what comes at the end of line 12, in the terminal
  souffleur stdio                      JSON-RPC for an editor, on stdin and stdout
  souffleur serve                      JSON-RPC for pages and tools, on a WebSocket
  souffleur doctor                     what this machine has, and what is wrong

`souffleur <COMMAND> --help` says more of each. The embedded model needs no download and no network; -m runs another.";

/// Whispers the next lines of code, from a model on this machine
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
    /// Complete a file at a place, and print the text
    Complete(complete::Complete),
    /// Speak JSON-RPC with an editor, on stdin and stdout
    Stdio(stdio::Stdio),
    /// Speak JSON-RPC with pages and tools, on a WebSocket
    Serve(serve::Serve),
    /// Say what this machine has, what the model is, and what is wrong
    Doctor(doctor::Doctor),
    /// Measure how fast a model is on this machine
    Bench(bench::Bench),
    /// Run one model for a front process, which starts this itself
    #[command(hide = true)]
    Worker,
}

#[derive(Args)]
#[command(next_help_heading = "Log, on stderr")]
pub(crate) struct Log {
    /// What to log: error, warn, info, debug, or a filter such as souffleur=debug; never prompts [default: warn of serve and stdio, error of the others]
    #[arg(long = "log", value_name = "FILTER", env = "SOUFFLEUR_LOG", value_parser = filter, global = true)]
    filter: Option<String>,
    /// How to write the log
    #[arg(long = "log-format", value_enum, default_value_t = LogFormat::Text, global = true)]
    format: LogFormat,
}

fn filter(text: &str) -> Result<String, ParseError> {
    EnvFilter::try_new(text).map(|_| text.into())
}

impl Log {
    /// With the filter that a command has when none is named.
    pub(crate) fn of(self, command: &Command) -> Self {
        // A stranger's bad request is an error to actix_http; anybody on this machine could fill the log with those.
        // What goes wrong in the other commands is their answer.
        let serves = matches!(command, Command::Serve(_) | Command::Stdio(_));
        let default = || if serves { "warn,actix_http=off" } else { "error" }.into();
        Self { filter: Some(self.filter.unwrap_or_else(default)), ..self }
    }

    /// The same for a worker.
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

/// Logs go to stderr, because stdout is the protocol's; also what panics, in front and worker.
pub(crate) fn log(log: &Log) {
    worker::log_panics_without_payload();
    let filter = EnvFilter::new(log.filter.as_deref().unwrap_or_default());
    // A line that can't be written is lost; to say so on stderr too would be a panic.
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match log.format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct Models {
    /// `embedded`, a .gguf file, or a folder with config.json, tokenizer.json and *.safetensors; repeat for several, the first is the default
    #[arg(short, long = "model", value_name = "MODEL", default_value = "embedded")]
    models: Vec<String>,
    /// Threads that compute; 0 takes one for each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1024))]
    threads: u32,
    /// How exact the products with quantized weights are: int8 is faster, f32 is what the reference computes
    #[arg(long, value_enum, default_value_t = Precision::Int8)]
    activations: Precision,
    /// Memory for what was read before, in MiB, so that a text that goes on needs only its new part read; 0 keeps nothing
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    cache: u32,
    /// Give a model's memory back when it was idle for this many minutes; 0 keeps it
    #[arg(long, value_name = "MINUTES", default_value_t = 0)]
    keep_alive: u32,
    /// End and replace a worker that stands still for this many seconds with work in hand
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u32).range(1..))]
    stall_limit: u32,
    /// Give a request up whose prompt takes longer than this many seconds to be made into tokens, and replace the worker
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = value_parser!(u32).range(1..))]
    prompt_limit: u32,
    /// Give a model up when its worker dies more often than this within 30 seconds
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

/// Requests name a folder by its last part and a file by that without `.gguf`, so that no path ever comes over the network.
fn model(text: &str) -> anyhow::Result<Model> {
    if text == "embedded" {
        return Ok(Model { name: text.into(), source: ModelSource::Embedded });
    }
    let path = Path::new(text).canonicalize().with_context(|| format!("model {text:?} is neither `embedded` nor there"))?;
    let word = |part: Option<&OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    if path.is_dir() {
        for file in ["config.json", "tokenizer.json"] {
            if !path.join(file).exists() {
                bail!("model folder {text:?} holds no {file}; {MODEL_FILES}");
            }
        }
        return Ok(Model { name: word(path.file_name()), source: ModelSource::Folder(path) });
    }
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        bail!("model {text:?} is not a .gguf file; {MODEL_FILES}");
    }
    Ok(Model { name: word(path.file_stem()), source: ModelSource::File(path) })
}

/// This very program, also when the file it was started from has been replaced since.
fn program() -> anyhow::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe().context("where this program is") }
}

/// A wait that is shorter than this needs no word.
const PATIENCE: Duration = Duration::from_millis(500);

/// Loads a model; a person at a terminal is told how far it is.
async fn load(runtime: &Runtime, model: &str) -> Result<ModelInfo, Error> {
    let start = Instant::now();
    let loaded = runtime.load(model, |done, total| {
        if start.elapsed() > PATIENCE {
            waiting_for(&format!("loading {model}: {} %", done.saturating_mul(100) / total.max(1)));
        }
    });
    let loaded = loaded.await;
    waiting_for("");
    loaded
}

/// Tells a person at a terminal, on a line that the next call takes away.
fn waiting_for(what: &str) {
    if std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr(), "\r\x1b[K{what}");
    }
}

/// A line for whoever reads stderr; nobody may, and then it is lost.
pub(crate) fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What is in hand at a signal may go on this long: a line is nearly done, and who stopped us waits.
const GRACE: Duration = Duration::from_secs(1);

/// Resolves when every request has ended: after the first signal that asks us to go, or because there is nothing left
/// to serve with.
async fn over(runtime: &Runtime) {
    tokio::select! {
        () = asked_to_stop() => {}
        () = runtime.ended() => tracing::error!("nothing is supervised any more"),
    }
    runtime.shutdown(GRACE).await;
}

async fn asked_to_stop() {
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
        // The terminal is gone.
        () = stop(SignalKind::hangup()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_the_last_word_of_its_path() {
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
        assert!(name(&at("absent.gguf")).unwrap_err().contains("nor there"));
        assert!(name(&at("empty")).unwrap_err().contains("holds no config.json"));
    }
}
