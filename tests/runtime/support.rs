//! A `Runtime` with a real worker process, and helpers that build requests and collect output.

use souffleur::actors::{
    Answer, DecoderStatus, End, Error, FimOrder, FinishReason, ModelInfo, ModelSource, ModelStatus, Prompt, Question, Reader, Rendered,
    Request, Runtime, Sampled, Sampling, Settings, Usage,
};
use souffleur::config::{Config, Isolation, Model};
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const MODEL: &str = "embedded";

/// Ends a test that hangs; no test measures time.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Runs a test on a Tokio runtime of its own.
pub(crate) fn run_test(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a Tokio runtime");
    runtime.block_on(async { tokio::time::timeout(TIME_LIMIT, test).await }).expect("the test hangs");
}

pub(crate) struct TestRuntime {
    runtime: Runtime,
}

impl std::ops::Deref for TestRuntime {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        &self.runtime
    }
}

impl TestRuntime {
    /// The embedded model with the default settings.
    pub(crate) fn new() -> Self {
        Self::with_folders(Settings::default(), Vec::new())
    }

    /// Without a prefix cache: no request depends on an earlier one.
    pub(crate) fn without_cache() -> Self {
        Self::with_folders(Settings { cache_bytes: 0, ..Settings::default() }, Vec::new())
    }

    /// The embedded model and the models in these folders, by name.
    pub(crate) fn with_folders(settings: Settings, folders: Vec<(String, PathBuf)>) -> Self {
        Self::from_config(Self::config(settings, folders))
    }

    pub(crate) fn from_config(config: Config) -> Self {
        Self { runtime: Runtime::start(config).expect("the runtime starts") }
    }

    pub(crate) fn config(settings: Settings, folders: Vec<(String, PathBuf)>) -> Config {
        let embedded = Model { name: MODEL.into(), source: ModelSource::Embedded };
        let folders = folders.into_iter().map(|(name, folder)| Model { name, source: ModelSource::Folder(folder) });
        let isolation = Isolation::Process { program: env!("CARGO_BIN_EXE_souffleur").into(), arguments: Vec::new() };
        let models = std::iter::once(embedded).chain(folders).collect();
        Config::new(models, isolation).expect("a valid configuration").with_settings(settings)
    }

    pub(crate) async fn model_info(&self) -> ModelInfo {
        self.runtime.load(MODEL, |_, _| {}).await.expect("the embedded model loads")
    }

    /// Runs a request to its end.
    pub(crate) async fn run(&self, request: Request) -> Output {
        let mut output = Output::default();
        let mut reader = self.runtime.complete(request).expect("below the limit of requests");
        output.read_to_end(&mut reader).await;
        output
    }

    pub(crate) async fn model(&self) -> ModelStatus {
        let models = self.runtime.status().await.models;
        models.into_iter().find(|model| model.name == MODEL).expect("it is configured")
    }

    /// The status of the decode loop. Retries, because the status lacks it while the worker is too busy to report.
    pub(crate) async fn decoder(&self) -> DecoderStatus {
        self.model_info().await;
        loop {
            if let Some(decoder) = self.model().await.decoder {
                return decoder;
            }
        }
    }

    pub(crate) async fn tokenize(&self, text: &str) -> Vec<u32> {
        match self.runtime.ask(MODEL, Question::Tokenize(text.into())).await {
            Ok(Answer::Tokens(tokens)) => tokens,
            other => panic!("{text:?} tokenizes to {other:?}"),
        }
    }

    pub(crate) async fn detokenize(&self, tokens: &[u32]) -> String {
        match self.runtime.ask(MODEL, Question::Detokenize(tokens.to_vec())).await {
            Ok(Answer::Text(text)) => text,
            other => panic!("{tokens:?} are {other:?}"),
        }
    }

    pub(crate) async fn render(&self, prompt: &Prompt) -> Rendered {
        match self.runtime.ask(MODEL, Question::Render(prompt.clone())).await {
            Ok(Answer::Rendered(rendered)) => rendered,
            other => panic!("{prompt:?} renders to {other:?}"),
        }
    }

    /// A text of exactly this many tokens. Texts of different salts differ from their first token on.
    pub(crate) async fn text_with_tokens(&self, tokens: usize, salt: usize) -> String {
        let mut text = format!("{salt} ledger\n");
        for line in 0.. {
            let next = format!("{text}total_{line} = entries[{}].amount - {salt}  # {}\n", line * 7 % 90, line * 31 % 53);
            if self.tokenize(&next).await.len() > tokens {
                break;
            }
            text = next;
        }
        let mut length = self.tokenize(&text).await.len();
        while length < tokens {
            text.push(['1', '4', '7'][length % 3]);
            length = self.tokenize(&text).await.len();
        }
        assert_eq!(length, tokens, "each further digit is one token");
        text
    }
}

/// The output received for one request.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Sampled>,
    pub(crate) end: Option<End>,
}

impl Output {
    /// Reads until the request ends.
    pub(crate) async fn read_to_end(&mut self, reader: &mut Reader) {
        while self.end.is_none() {
            self.read(reader).await;
        }
    }

    /// Reads until there are at least this many tokens. Returns false if the request ended.
    pub(crate) async fn read_tokens(&mut self, reader: &mut Reader, tokens: usize) -> bool {
        while self.end.is_none() && self.tokens.len() < tokens {
            self.read(reader).await;
        }
        self.end.is_none()
    }

    async fn read(&mut self, reader: &mut Reader) {
        let update = reader.next().await;
        self.text += &update.text;
        self.tokens.extend(update.tokens);
        self.end = update.end;
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|sampled| sampled.token).collect()
    }

    #[track_caller]
    pub(crate) fn reason(&self) -> FinishReason {
        done(self.end.as_ref().expect("read to its end")).0
    }

    #[track_caller]
    pub(crate) fn usage(&self) -> Usage {
        done(self.end.as_ref().expect("read to its end")).1
    }

    #[track_caller]
    pub(crate) fn error(&self) -> &Error {
        match &self.end {
            Some(End::Failed(error)) => error,
            other => panic!("{other:?} is not a failure"),
        }
    }
}

#[track_caller]
pub(crate) fn done(end: &End) -> (FinishReason, Usage) {
    match end {
        End::Done { reason, usage, .. } => (*reason, *usage),
        End::Failed(error) => panic!("failed: {error}"),
    }
}

/// A request that samples greedily.
pub(crate) fn greedy(prompt: Prompt, tokens_max: u32) -> Request {
    Request { model: MODEL.into(), prompt, sampling: Sampling::default(), stop: Vec::new(), tokens_max, logprobs: None }
}

pub(crate) fn text(text: impl Into<String>) -> Prompt {
    Prompt::Text(text.into())
}

/// An infill prompt. Suffix first: the prompt keeps its beginning while the user types in the prefix.
pub(crate) fn infill(prefix: impl Into<String>, suffix: impl Into<String>) -> Prompt {
    let order = Some(FimOrder::SuffixPrefixMiddle);
    Prompt::Infill { prefix: prefix.into(), suffix: suffix.into(), path: None, repository: None, files: Vec::new(), order }
}

/// A logit bias against every EOS token, so that a request generates `tokens_max` tokens.
pub(crate) fn ban_eos(info: &ModelInfo) -> Vec<(u32, f32)> {
    info.eos.iter().map(|(id, _)| (*id, -1000.0)).collect()
}

pub(crate) fn common_prefix_len(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
