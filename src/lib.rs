//! Souffleur: local code models, streamed over JSON-RPC to editors and web pages.
//!
//! Three layers, one direction: [`protocol`] → [`actors`] → [`models`]. `models` computes, `actors` schedules requests and
//! restarts workers that die, `protocol` serves clients. Applications that embed Souffleur start at [`actors::Runtime`]:
//!
//! ```no_run
//! use souffleur::actors::{ModelSource, Prompt, Request, Runtime, Sampling};
//! use souffleur::config::{Config, Isolation, Model};
//!
//! # async fn complete() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model { name: "coder".into(), source: ModelSource::File("models/coder.gguf".into()) };
//! let isolation = Isolation::Process { program: "souffleur".into(), arguments: Vec::new() };
//! let runtime = Runtime::start(Config::new(vec![model], isolation)?)?;
//!
//! let request = Request {
//!     model: "coder".into(),
//!     prompt: Prompt::Text("def add(a, b):".into()),
//!     sampling: Sampling::default(),
//!     stop: vec!["\n\n".into()],
//!     tokens_max: 64,
//!     logprobs: None,
//! };
//! let mut reader = runtime.complete(request)?;
//! loop {
//!     let update = reader.next().await;
//!     print!("{}", update.text);
//!     if update.end.is_some() {
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Dropping the reader cancels the request. `examples/embed.rs` runs a model on threads of the application instead.

pub mod actors;
pub mod config;
#[doc(hidden)]
pub mod failpoints;
pub mod models;
pub mod protocol;
