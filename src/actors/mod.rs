//! Scheduling and supervision of the workers that run models. No JSON, no sockets, no tensors.
//!
//! ```text
//! Runtime ─▶ Supervisor ─▶ ModelActor ─▶ session ═══ link ═══ worker (receiver, prompter, decoder)
//!    ▲                                      │
//!    └────────── Reader ◀── transcript ◀────┘
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
