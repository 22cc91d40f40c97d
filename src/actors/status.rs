//! What is reported: models, their workers, and their decode loops.

use crate::models::{ModelInfo, ModelSource};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The decode loop, told by itself between two steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecoderStatus {
    pub steps: u64,
    pub running: u32,
    pub waiting: u32,
    /// Sequences of the last step, and of the largest one.
    pub step_sequences: u32,
    pub step_sequences_max: u32,
    /// Rows (tokens) computed since the start: what a cancel is measured by.
    pub rows: u64,
    pub cache_entries: u32,
    pub cache_bytes: u64,
    pub cache_budget_bytes: u64,
    /// Keys and values of the running sequences.
    pub running_bytes: u64,
    /// Since the last step ended; `None` before the first.
    pub last_step_us: Option<u64>,
    /// What the prompter is at, if anything.
    pub prompter: Option<PrompterActivity>,
}

/// The request or question that a prompter is at, and for how long.
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
    /// Its worker died, and the next one is not ready yet.
    Restarting,
    /// Loaded, and its decode loop does not answer. Told by who asks it, as `status` does.
    Stalled,
    Failed,
}

/// A death of a model's worker.
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
    pub in_flight: usize,
    /// Deaths of this model's workers since the start, and the last of them, newest last.
    pub restarts: u32,
    pub deaths: Vec<Death>,
    /// Since its decode loop was last heard; `None` when not loaded.
    pub last_activity: Option<Duration>,
    /// What is known since it was first loaded.
    pub info: Option<ModelInfo>,
    /// `None` when not loaded, or when the decode loop did not answer in time.
    pub decoder: Option<DecoderStatus>,
}

impl ModelStatus {
    pub fn last_cause(&self) -> Option<&str> {
        self.deaths.last().map(|death| death.cause.as_str())
    }
}

#[derive(Clone, Debug)]
pub struct Status {
    pub uptime: Duration,
    pub requests_in_flight: usize,
    pub requests_limit: usize,
    pub models: Vec<ModelStatus>,
}
