//! The front door.

use crate::actors::{Answer, Card, End, ModelStatus, Question, Request, Result, Sampled, Status};
use crate::config::{Config, Limits};
use std::time::Duration;

/// The front door: `Clone + Send`, on its own actor thread, usable from any runtime or none.
#[derive(Clone)]
pub struct Runtime {}

impl Runtime {
    pub fn start(_config: Config) -> Result<Self> {
        todo!()
    }
    pub fn limits(&self) -> &Limits {
        todo!()
    }
    /// The name requests mean when they name no model.
    pub fn default_model(&self) -> &str {
        todo!()
    }
    /// Takes a ticket or answers `Overloaded` at once; loads the model if it must. Everything else that can go wrong is the transcript's end.
    pub fn complete(&self, _request: Request) -> Result<Reader> {
        todo!()
    }
    pub async fn ask(&self, _model: &str, _question: Question) -> Result<Answer> {
        todo!()
    }
    /// Loads and waits; `progress` hears bytes done and in all. Two loads of one model are one.
    pub async fn load(&self, _model: &str, _progress: impl FnMut(u64, u64) + Send) -> Result<Card> {
        todo!()
    }
    pub async fn unload(&self, _model: &str) -> Result<()> {
        todo!()
    }
    /// What a model is, also when it is not loaded.
    pub async fn show(&self, _model: &str) -> Result<Card> {
        todo!()
    }
    /// Asks every decode loop, waiting for each at most a second.
    pub async fn status(&self) -> Status {
        todo!()
    }
    /// As `status`, without asking the workers.
    pub async fn models(&self) -> Vec<ModelStatus> {
        todo!()
    }
    /// Refuses new requests, gives those in hand this long, cancels the rest, ends the workers.
    pub async fn shutdown(&self, _grace: Duration) {
        todo!()
    }
}

/// What is new in a transcript since the last look, joined.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// The transcript's number of the first step in this piece; steps count from 0.
    pub seq: u64,
    pub text: String,
    pub tokens: Vec<Sampled>,
    pub end: Option<End>,
}

/// One reader of one request's transcript. When the last is dropped the request is cancelled.
pub struct Reader {}

impl Reader {
    /// Waits for something new; cancel-safe. After the end it returns the end again.
    pub async fn next(&mut self) -> News {
        todo!()
    }
    /// Stops reading, which cancels when nobody else reads, and keeps a way to learn how it ended.
    pub fn abandon(self) -> Ending {
        todo!()
    }
}

/// How a request ends, without keeping it alive.
pub struct Ending {}

impl Ending {
    pub async fn wait(self) -> End {
        todo!()
    }
}
