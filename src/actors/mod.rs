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
mod status;
mod wire;
pub mod worker;

pub use crate::models::Error as ModelError;
pub use crate::models::{
    Activations, CpuSettings, Embedded, File, FimOrder, FinishReason, Message, ModelInfo, ModelSource, Prompt, Role, Sampled, Sampling,
    Settings,
};
pub use error::{Error, Result};
pub use front::{Completion, Reader, Runtime, Update};
pub use request::{Answer, End, Question, Rendered, Replay, Request, Step, Usage};
pub use status::{Death, DecoderStatus, ModelState, ModelStatus, PrompterActivity, Status};
pub use wire::{FromWorker, ToWorker, WIRE_VERSION};
