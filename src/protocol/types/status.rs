//! The results of `models/*`, `status` and `/health`.

use crate::actors::{DecoderStatus, FimOrder, ModelInfo, ModelSource, ModelState, ModelStatus, Status};
use serde::Serialize;
use std::time::Duration;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModelInfoResult {
    name: String,
    architecture: String,
    family: String,
    quantization: String,
    parameters: u64,
    weight_bytes: u64,
    layers: u32,
    hidden_size: u32,
    vocab_size: u32,
    context_length: u32,
    eos: Vec<Eos>,
    /// The default order of an infill prompt; null for a model without FIM tokens.
    fim: Option<&'static str>,
    /// The backend and its instruction set, such as `cpu (avx2)`.
    backend: String,
    threads: u32,
}

#[derive(Clone, Debug, Serialize)]
struct Eos {
    token: u32,
    text: String,
}

impl ModelInfoResult {
    pub(crate) fn new(name: String, info: ModelInfo) -> Self {
        Self {
            name,
            architecture: info.architecture,
            family: info.family,
            quantization: info.quantization,
            parameters: info.parameters,
            weight_bytes: info.weight_bytes,
            layers: info.layers,
            hidden_size: info.hidden_size,
            vocab_size: info.vocab_size,
            context_length: info.context_length,
            eos: info.eos.into_iter().map(|(token, text)| Eos { token, text }).collect(),
            fim: info.fim.map(|order| match order {
                FimOrder::PrefixSuffixMiddle => "prefixSuffixMiddle",
                FimOrder::SuffixPrefixMiddle => "suffixPrefixMiddle",
            }),
            backend: info.backend,
            threads: info.threads,
        }
    }
}

/// See `ModelStatus` for the meaning of each member.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModelStatusResult {
    name: String,
    /// Whether requests without `model` go to this one.
    default: bool,
    /// `embedded`, or the path of the folder or file.
    source: String,
    state: &'static str,
    worker_pid: Option<u32>,
    in_flight: usize,
    restarts: u32,
    deaths: Vec<DeathResult>,
    /// Time since the decode loop's last message.
    last_sign_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoder: Option<DecoderResult>,
}

impl ModelStatusResult {
    fn new(model: ModelStatus, default_model: &str) -> Self {
        Self {
            default: model.name == default_model,
            name: model.name,
            source: match model.source {
                ModelSource::Embedded => "embedded".to_owned(),
                ModelSource::Folder(path) | ModelSource::File(path) => path.display().to_string(),
            },
            state: match model.state {
                ModelState::Unloaded => "unloaded",
                ModelState::Loading => "loading",
                ModelState::Ready => "ready",
                ModelState::Restarting => "restarting",
                ModelState::Stalled => "stalled",
                ModelState::Failed => "failed",
            },
            worker_pid: model.worker_pid,
            in_flight: model.in_flight,
            restarts: model.restarts,
            deaths: model.deaths.into_iter().map(|death| DeathResult { cause: death.cause, ago_ms: millis(death.ago) }).collect(),
            last_sign_ms: model.last_activity.map(millis),
            decoder: model.decoder.map(DecoderResult::from),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DeathResult {
    cause: String,
    ago_ms: u64,
}

/// State of a decode loop; see `DecoderStatus` for the meaning of each member.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DecoderResult {
    steps: u64,
    running: u32,
    waiting: u32,
    step_sequences: u32,
    step_sequences_max: u32,
    rows: u64,
    cache_entries: u32,
    cache_bytes: u64,
    cache_budget_bytes: u64,
    running_bytes: u64,
    /// Time since the last step ended.
    last_step_ms: Option<u64>,
}

impl From<DecoderStatus> for DecoderResult {
    fn from(decoder: DecoderStatus) -> Self {
        Self {
            steps: decoder.steps,
            running: decoder.running,
            waiting: decoder.waiting,
            step_sequences: decoder.step_sequences,
            step_sequences_max: decoder.step_sequences_max,
            rows: decoder.rows,
            cache_entries: decoder.cache_entries,
            cache_bytes: decoder.cache_bytes,
            cache_budget_bytes: decoder.cache_budget_bytes,
            running_bytes: decoder.running_bytes,
            last_step_ms: decoder.last_step_us.map(|us| us / 1000),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModelsResult {
    models: Vec<ModelStatusResult>,
}

impl ModelsResult {
    pub(crate) fn new(models: Vec<ModelStatus>, default_model: &str) -> Self {
        Self { models: models.into_iter().map(|model| ModelStatusResult::new(model, default_model)).collect() }
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusResult {
    version: &'static str,
    uptime_ms: u64,
    requests_in_flight: usize,
    requests_limit: usize,
    models: Vec<ModelStatusResult>,
}

impl StatusResult {
    pub(crate) fn new(status: Status, default_model: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime_ms: millis(status.uptime),
            requests_in_flight: status.requests_in_flight,
            requests_limit: status.requests_limit,
            models: ModelsResult::new(status.models, default_model).models,
        }
    }
}

/// `ok`, or the worst state of any model.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HealthResult {
    status: &'static str,
    /// Only for clients with the access token.
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<Vec<ModelStatusResult>>,
}

impl HealthResult {
    pub(crate) fn new(status: Status, default_model: &str, with_models: bool) -> Self {
        let any_is = |state| status.models.iter().any(|model| model.state == state);
        // The worst state first.
        let unhealthy = [(ModelState::Failed, "failed"), (ModelState::Stalled, "stalled"), (ModelState::Restarting, "restarting")];
        let worst = unhealthy.into_iter().find(|(state, _)| any_is(*state));
        let status_word = worst.map_or("ok", |(_, word)| word);
        Self { status: status_word, models: with_models.then(|| ModelsResult::new(status.models, default_model).models) }
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
