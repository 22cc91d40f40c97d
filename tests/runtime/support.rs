//! A runtime over the real worker, and what the tests ask of it.

use souffleur::actors::{
    Answer, DecoderStatus, End, Error, FimOrder, FinishReason, ModelInfo, ModelSource, ModelStatus, Prompt, Question, Reader, Rendered,
    Request, Runtime, Sampled, Sampling, Settings, Usage,
};
use souffleur::config::{Config, Isolation, Model};
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const MODEL: &str = "embedded";

/// A guard against hanging for ever; no test is about time.
const HANG: Duration = Duration::from_secs(600);

/// Runs a test on a runtime of its own.
pub(crate) fn within(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(HANG, test).await }).expect("the test hangs");
}

pub(crate) struct House {
    pub(crate) runtime: Runtime,
}

impl House {
    /// The embedded model as it is by default.
    pub(crate) fn warm() -> Self {
        Self::start(Settings::default(), Vec::new())
    }

    /// Without a prefix cache: every request is alone in the world.
    pub(crate) fn cold() -> Self {
        Self::start(Settings { cache_bytes: 0, ..Settings::default() }, Vec::new())
    }

    /// The embedded model and models of folders, by name.
    pub(crate) fn start(settings: Settings, folders: Vec<(String, PathBuf)>) -> Self {
        Self::over(Self::config(settings, folders))
    }

    pub(crate) fn over(config: Config) -> Self {
        Self { runtime: Runtime::start(config).expect("a runtime starts") }
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

    /// Follows a request to its end.
    pub(crate) async fn run(&self, request: Request) -> Told {
        let mut told = Told::default();
        let mut reader = self.runtime.complete(request).expect("a ticket is free");
        told.follow(&mut reader).await;
        told
    }

    pub(crate) async fn model(&self) -> ModelStatus {
        let models = self.runtime.status().await.models;
        models.into_iter().find(|model| model.name == MODEL).expect("it is configured")
    }

    /// What the decode loop says of itself, also when the machine is too busy to say it at once.
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

    /// A text of exactly this many tokens; another salt gives one that differs from the start.
    pub(crate) async fn text_of(&self, tokens: usize, salt: usize) -> String {
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
        assert_eq!(length, tokens, "one more digit is one more token");
        text
    }
}

/// What a reader was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Sampled>,
    pub(crate) end: Option<End>,
}

impl Told {
    /// Reads on until the end.
    pub(crate) async fn follow(&mut self, reader: &mut Reader) {
        while self.end.is_none() {
            self.read(reader).await;
        }
    }

    /// Reads until at least this many tokens have come; false when the end came before.
    pub(crate) async fn reach(&mut self, reader: &mut Reader, tokens: usize) -> bool {
        while self.end.is_none() && self.tokens.len() < tokens {
            self.read(reader).await;
        }
        self.end.is_none()
    }

    async fn read(&mut self, reader: &mut Reader) {
        let news = reader.next().await;
        self.text += &news.text;
        self.tokens.extend(news.tokens);
        self.end = news.end;
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|sampled| sampled.token).collect()
    }

    #[track_caller]
    pub(crate) fn reason(&self) -> FinishReason {
        done(self.end.as_ref().expect("it was followed to its end")).0
    }

    #[track_caller]
    pub(crate) fn usage(&self) -> Usage {
        done(self.end.as_ref().expect("it was followed to its end")).1
    }

    #[track_caller]
    pub(crate) fn error(&self) -> &Error {
        match &self.end {
            Some(End::Failed(error)) => error,
            other => panic!("{other:?} is no failure"),
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

/// Greedy.
pub(crate) fn ask(prompt: Prompt, tokens_max: u32) -> Request {
    Request { model: MODEL.into(), prompt, sampling: Sampling::default(), stop: Vec::new(), tokens_max, logprobs: None }
}

pub(crate) fn text(text: impl Into<String>) -> Prompt {
    Prompt::Text(text.into())
}

/// A hole in the order that keeps its beginning while one types.
pub(crate) fn hole(prefix: impl Into<String>, suffix: impl Into<String>) -> Prompt {
    let order = Some(FimOrder::SuffixPrefixMiddle);
    Prompt::Infill { prefix: prefix.into(), suffix: suffix.into(), path: None, repository: None, files: Vec::new(), order }
}

/// A bias that keeps a text from ending before its `tokens_max`.
pub(crate) fn endless(card: &ModelInfo) -> Vec<(u32, f32)> {
    card.eos.iter().map(|(id, _)| (*id, -1000.0)).collect()
}

pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
