//! Everything that can be set, parsed once into types that can't be wrong, and every limit with its reason.

use crate::models::{Embedded, ModelSource, Settings};
use std::{path::PathBuf, time::Duration};

/// Where a model runs. `Process` names its program, since an embedding application's own executable is not a worker, and
/// what it is told before `worker`, such as how to log.
#[derive(Clone, Debug, Default)]
pub enum Isolation {
    #[default]
    Thread,
    Process {
        program: PathBuf,
        arguments: Vec<String>,
    },
}

/// A model that requests may name.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub source: ModelSource,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// The first is the default one.
    pub models: Vec<Model>,
    /// The files behind `ModelSource::Embedded` for `Isolation::Thread`; a worker process brings its own.
    pub embedded: Option<Embedded>,
    pub isolation: Isolation,
    pub settings: Settings,
    pub limits: Limits,
    pub restarts: RestartLimit,
    /// An idle model's worker is ended after this time; `None` keeps it.
    pub keep_alive: Option<Duration>,
}

/// A child that dies more often than this within the period is given up.
#[derive(Clone, Copy, Debug)]
pub struct RestartLimit {
    pub deaths: u32,
    pub period: Duration,
}

impl Default for RestartLimit {
    fn default() -> Self {
        // OTP's advice for a burst; a model that always dies costs six loads and then fails at once.
        Self { deaths: 5, period: Duration::from_secs(30) }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in hand over all connections: 16 run, the others wait; more would wait longer than a reader does.
    pub requests_in_flight: usize,
    /// Calls one connection may have open: an editor has a handful, a page a few.
    pub calls_per_connection: usize,
    /// Bytes of one message: a prompt with its repository context, in JSON.
    pub message_bytes: usize,
    /// Calls of one batch.
    pub batch: usize,
    /// Messages a peer may leave unread before its own requests stop making progress.
    pub outbox: usize,
    /// Tokens of one answer.
    pub answer_tokens: u32,
    /// Stop sequences of one request, and bytes of each: each is searched at every token.
    pub stops: usize,
    pub stop_bytes: usize,
    /// Bytes of text that one request may bring to the tokenizer.
    pub text_bytes: usize,
    /// Entries of a logit bias.
    pub logit_bias: usize,
    /// Alternatives reported per token.
    pub logprobs: u8,
    /// Files of repository context.
    pub files: usize,
    /// WebSocket connections at once.
    pub connections: usize,
    /// A decoder with work in hand that gives no sign for this long is ended: the longest honest gap is one prefill chunk
    /// or one tensor of a load, so this is a machine that swaps, and then some.
    pub decoder_silence: Duration,
    /// A prompter that is at one request for this long is ended. 2 MiB of one letter, the slowest text that is known, took 30 s
    /// on a machine with ten times as much to do as it has processors, and code an eighth of that.
    pub prompter_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_in_flight: 64,
            calls_per_connection: 64,
            message_bytes: 4 << 20,
            batch: 32,
            outbox: 64,
            answer_tokens: 16_384,
            stops: 16,
            stop_bytes: 256,
            text_bytes: 2 << 20,
            logit_bias: 1024,
            logprobs: 20,
            files: 64,
            connections: 1024,
            decoder_silence: Duration::from_secs(30),
            prompter_time: Duration::from_secs(120),
        }
    }
}
