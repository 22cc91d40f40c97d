//! The state of models, workers and decode loops, as `status` reports it.

use crate::models::{ModelInfo, ModelSource};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// State of a decode loop between two steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecoderStatus {
    /// Steps since the start of the worker.
    pub steps: u64,
    /// Sequences that take part in steps.
    pub running: u32,
    /// Requests that wait for admission to the batch.
    pub waiting: u32,
    /// Sequences in the last step.
    pub step_sequences: u32,
    /// Sequences in the largest step so far.
    pub step_sequences_max: u32,
    /// Rows (tokens) computed since the start. Tests use it to measure how fast a cancel takes effect.
    pub rows: u64,
    /// The prefix cache: KV caches of ended sequences, kept for prompts that start alike.
    pub cache_entries: u32,
    pub cache_bytes: u64,
    /// The largest `cache_bytes`.
    pub cache_budget_bytes: u64,
    /// Bytes of the running sequences' KV caches.
    pub running_bytes: u64,
    /// Time since the last step ended; `None` before the first.
    pub last_step_us: Option<u64>,
    pub prompter: Option<PrompterActivity>,
}

/// The request or question that the prompter works on, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrompterActivity {
    pub id: u64,
    pub elapsed: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelState {
    Unloaded,
    Loading,
    Ready,
    /// The worker died, and the next one is not ready yet.
    Restarting,
    /// Loaded, but the decode loop did not reply to `status` in time.
    Stalled,
    /// The restart limit was reached.
    Failed,
}

/// An unplanned end of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    pub cause: String,
    pub ago: Duration,
}

#[derive(Clone, Debug)]
pub struct ModelStatus {
    pub name: String,
    pub source: ModelSource,
    pub state: ModelState,
    pub worker_pid: Option<u32>,
    /// Completions that have not ended.
    pub in_flight: usize,
    /// Worker deaths since the start of the runtime.
    pub restarts: u32,
    /// The most recent deaths, newest last.
    pub deaths: Vec<Death>,
    /// Time since the decode loop's last message; `None` if the model is not loaded.
    pub last_activity: Option<Duration>,
    /// Known once the model was loaded.
    pub info: Option<ModelInfo>,
    /// `None` if the model is not loaded, or if the decode loop did not reply in time.
    pub decoder: Option<DecoderStatus>,
}

impl ModelStatus {
    pub fn last_cause(&self) -> Option<&str> {
        self.deaths.last().map(|death| death.cause.as_str())
    }
}

/// State of a runtime and its models.
#[derive(Clone, Debug)]
pub struct Status {
    pub uptime: Duration,
    pub requests_in_flight: usize,
    /// The most requests that may be in flight.
    pub requests_limit: usize,
    pub models: Vec<ModelStatus>,
}
