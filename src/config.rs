//! Configuration of a `Runtime`, checked when it is built, and every limit with its reason.

use crate::models::{Embedded, ModelSource, Settings};
use std::{collections::HashSet, path::PathBuf, time::Duration};

/// Where a model runs.
#[derive(Clone, Debug)]
pub enum Isolation {
    /// On threads of this process, for trusted model files only: a crash in a model ends the application, as does SIGBUS if a
    /// model file is truncated while it is in use, and a stalled model can't be killed.
    Thread {
        /// The files of `ModelSource::Embedded`.
        embedded: Option<Embedded>,
    },
    /// In a child process. An embedding application has to name a worker program, since its own executable is not one.
    Process {
        program: PathBuf,
        /// Arguments before the subcommand `worker`, such as log options.
        arguments: Vec<String>,
    },
}

/// A model that requests may name.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub source: ModelSource,
}

/// A valid configuration: `new` and the `with_` methods refuse every other.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) models: Vec<Model>,
    pub(crate) isolation: Isolation,
    pub(crate) settings: Settings,
    pub(crate) limits: Limits,
    pub(crate) restarts: RestartLimit,
    pub(crate) keep_alive: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("no model is configured")]
    NoModels,
    #[error("two models are named {name:?}; rename one of them")]
    DuplicateModel { name: String },
    #[error("model {model:?} is embedded, but `Isolation::Thread` has no embedded files")]
    NoEmbeddedFiles { model: String },
    #[error("`{field}` is zero")]
    Zero { field: &'static str },
    #[error("`{field}` exceeds {max}")]
    TooLarge { field: &'static str, max: usize },
}

impl Config {
    /// Default settings and limits. The first model is the default of requests that name none.
    ///
    /// # Errors
    ///
    /// No models, two models of one name, or an embedded model on a thread without embedded files.
    pub fn new(models: Vec<Model>, isolation: Isolation) -> Result<Self, ConfigError> {
        if models.is_empty() {
            return Err(ConfigError::NoModels);
        }
        let mut names = HashSet::new();
        for model in &models {
            if !names.insert(&model.name) {
                return Err(ConfigError::DuplicateModel { name: model.name.clone() });
            }
            if let (ModelSource::Embedded, Isolation::Thread { embedded: None }) = (&model.source, &isolation) {
                return Err(ConfigError::NoEmbeddedFiles { model: model.name.clone() });
            }
        }
        let (settings, limits, restarts) = (Settings::default(), Limits::default(), RestartLimit::default());
        Ok(Self { models, isolation, settings, limits, restarts, keep_alive: None })
    }

    #[must_use]
    pub fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// # Errors
    ///
    /// A limit that is zero, or more `requests_in_flight` than `Limits::REQUESTS_IN_FLIGHT_MAX`.
    pub fn with_limits(self, limits: Limits) -> Result<Self, ConfigError> {
        limits.check()?;
        Ok(Self { limits, ..self })
    }

    /// # Errors
    ///
    /// A period of zero. Zero deaths are valid: the first death is final then.
    pub fn with_restarts(self, restarts: RestartLimit) -> Result<Self, ConfigError> {
        nonzero("restarts.period", restarts.period.is_zero())?;
        Ok(Self { restarts, ..self })
    }

    /// Unloads a model that was idle for this time; `None` keeps it loaded.
    ///
    /// # Errors
    ///
    /// A time of zero.
    pub fn with_keep_alive(self, keep_alive: Option<Duration>) -> Result<Self, ConfigError> {
        nonzero("keep_alive", keep_alive.is_some_and(|time| time.is_zero()))?;
        Ok(Self { keep_alive, ..self })
    }

    pub fn models(&self) -> &[Model] {
        &self.models
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// A worker that dies more often than `deaths` within `period` is not restarted any more.
#[derive(Clone, Copy, Debug)]
pub struct RestartLimit {
    pub deaths: u32,
    pub period: Duration,
}

impl Default for RestartLimit {
    fn default() -> Self {
        // A few deaths in quick succession are tolerated; a model that always dies fails after six loads.
        Self { deaths: 5, period: Duration::from_secs(30) }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in flight over all connections. 16 of a model run together and the others wait; a longer queue would make
    /// users wait too long.
    pub requests_in_flight: usize,
    /// Open calls of one connection: an editor has a handful, a web page a few.
    pub calls_per_connection: usize,
    /// Bytes of one message: a prompt with its repository context, as JSON.
    pub message_bytes: usize,
    /// Calls in one batch.
    pub batch: usize,
    /// Messages a peer may leave unread before its own requests stop making progress.
    pub outbox: usize,
    /// Tokens of one completion.
    pub answer_tokens: u32,
    /// Stop sequences of one request; each is searched after every token.
    pub stops: usize,
    /// Bytes of one stop sequence.
    pub stop_bytes: usize,
    /// Bytes of text that one request may send to the tokenizer.
    pub text_bytes: usize,
    /// Entries of a logit bias.
    pub logit_bias: usize,
    /// Alternatives reported per token.
    pub logprobs: u8,
    /// Files of repository context.
    pub files: usize,
    /// Open WebSocket connections.
    pub connections: usize,
    /// A busy decoder that sends no message for this long is killed. The longest regular gap is one prefill chunk, or one
    /// tensor of a load, so only a machine that swaps heavily comes near it.
    pub decoder_silence: Duration,
    /// A prompter that works on one request for this long is killed with its worker. The slowest known text, 2 MiB of one
    /// repeated letter, took 30 s with ten busy threads per processor; code takes an eighth of that.
    pub prompter_time: Duration,
}

impl Limits {
    /// The largest `requests_in_flight`. Mailboxes, channels and worker inboxes have a place for each request.
    pub const REQUESTS_IN_FLIGHT_MAX: usize = 512;

    fn check(&self) -> Result<(), ConfigError> {
        // All fields are named here, so that a new one can't be forgotten.
        let Self {
            requests_in_flight,
            calls_per_connection,
            message_bytes,
            batch,
            outbox,
            answer_tokens,
            stops,
            stop_bytes,
            text_bytes,
            logit_bias,
            logprobs,
            files,
            connections,
            decoder_silence,
            prompter_time,
        } = *self;
        nonzero("requests_in_flight", requests_in_flight == 0)?;
        nonzero("calls_per_connection", calls_per_connection == 0)?;
        nonzero("message_bytes", message_bytes == 0)?;
        nonzero("batch", batch == 0)?;
        nonzero("outbox", outbox == 0)?;
        nonzero("answer_tokens", answer_tokens == 0)?;
        nonzero("stops", stops == 0)?;
        nonzero("stop_bytes", stop_bytes == 0)?;
        nonzero("text_bytes", text_bytes == 0)?;
        nonzero("logit_bias", logit_bias == 0)?;
        nonzero("logprobs", logprobs == 0)?;
        nonzero("files", files == 0)?;
        nonzero("connections", connections == 0)?;
        nonzero("decoder_silence", decoder_silence.is_zero())?;
        nonzero("prompter_time", prompter_time.is_zero())?;
        if requests_in_flight > Self::REQUESTS_IN_FLIGHT_MAX {
            return Err(ConfigError::TooLarge { field: "requests_in_flight", max: Self::REQUESTS_IN_FLIGHT_MAX });
        }
        Ok(())
    }
}

fn nonzero(field: &'static str, is_zero: bool) -> Result<(), ConfigError> {
    if is_zero { Err(ConfigError::Zero { field }) } else { Ok(()) }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> Model {
        Model { name: name.into(), source: ModelSource::Embedded }
    }

    fn process() -> Isolation {
        Isolation::Process { program: "souffleur".into(), arguments: Vec::new() }
    }

    fn config() -> Config {
        Config::new(vec![model("a"), model("b")], process()).unwrap()
    }

    #[test]
    fn a_configuration_without_models_is_refused() {
        assert_eq!(Config::new(Vec::new(), process()).err(), Some(ConfigError::NoModels));
    }

    #[test]
    fn two_models_of_one_name_are_refused() {
        let models = vec![model("a"), model("b"), model("a")];
        assert_eq!(Config::new(models, process()).err(), Some(ConfigError::DuplicateModel { name: "a".into() }));
    }

    #[test]
    fn an_embedded_model_on_a_thread_needs_embedded_files() {
        let folder = Model { name: "folder".into(), source: ModelSource::Folder("models/a".into()) };
        let thread = Isolation::Thread { embedded: None };
        let missing = ConfigError::NoEmbeddedFiles { model: "a".into() };
        assert_eq!(Config::new(vec![folder.clone(), model("a")], thread.clone()).err(), Some(missing));
        assert!(Config::new(vec![folder], thread).is_ok());
    }

    #[test]
    fn a_limit_of_zero_is_refused_by_name() {
        type Case = (&'static str, fn(&mut Limits));
        let cases: [Case; 15] = [
            ("requests_in_flight", |limits| limits.requests_in_flight = 0),
            ("calls_per_connection", |limits| limits.calls_per_connection = 0),
            ("message_bytes", |limits| limits.message_bytes = 0),
            ("batch", |limits| limits.batch = 0),
            ("outbox", |limits| limits.outbox = 0),
            ("answer_tokens", |limits| limits.answer_tokens = 0),
            ("stops", |limits| limits.stops = 0),
            ("stop_bytes", |limits| limits.stop_bytes = 0),
            ("text_bytes", |limits| limits.text_bytes = 0),
            ("logit_bias", |limits| limits.logit_bias = 0),
            ("logprobs", |limits| limits.logprobs = 0),
            ("files", |limits| limits.files = 0),
            ("connections", |limits| limits.connections = 0),
            ("decoder_silence", |limits| limits.decoder_silence = Duration::ZERO),
            ("prompter_time", |limits| limits.prompter_time = Duration::ZERO),
        ];
        assert!(config().with_limits(Limits::default()).is_ok());
        for (field, set_zero) in cases {
            let mut limits = Limits::default();
            set_zero(&mut limits);
            assert_eq!(config().with_limits(limits).err(), Some(ConfigError::Zero { field }));
        }
    }

    #[test]
    fn more_requests_than_the_inboxes_hold_are_refused() {
        let limits = Limits { requests_in_flight: 513, ..Limits::default() };
        let too_large = ConfigError::TooLarge { field: "requests_in_flight", max: Limits::REQUESTS_IN_FLIGHT_MAX };
        assert_eq!(config().with_limits(limits).err(), Some(too_large));
    }

    #[test]
    fn a_restart_period_of_zero_is_refused() {
        let restarts = RestartLimit { deaths: 5, period: Duration::ZERO };
        assert_eq!(config().with_restarts(restarts).err(), Some(ConfigError::Zero { field: "restarts.period" }));
    }

    #[test]
    fn a_keep_alive_of_zero_is_refused() {
        let zero = ConfigError::Zero { field: "keep_alive" };
        assert_eq!(config().with_keep_alive(Some(Duration::ZERO)).err(), Some(zero));
        assert!(config().with_keep_alive(None).is_ok());
    }
}
