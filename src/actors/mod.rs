//! Who runs, who watches whom, and what happens when it dies. No JSON, no sockets, no tensors.
//!
//! ```text
//! Runtime ─▶ Supervisor ─▶ ModelActor ─▶ life ═══ link ═══ worker (wire, prompter, decoder)
//!    ▲                                    │
//!    └───────── Reader ◀── transcript ◀───┘
//! ```
#![forbid(unsafe_code)]

mod error;
mod frame;
pub mod front;
mod request;
pub mod worker;

pub use crate::models::Error as ModelError;
pub use crate::models::{
    Activations, Embedded, File, FimOrder, FinishReason, Message, ModelInfo, ModelSource, Prompt, Role, Sampled, Sampling, Settings,
};
pub use error::{Error, Result};
pub use front::{Ending, News, Reader, Runtime};
pub use request::{
    Answer, Death, DecoderStatus, End, FromWorker, ModelState, ModelStatus, Prompting, Question, Rendered, Replay, Request, Status, Step,
    ToWorker, Usage, WIRE,
};
