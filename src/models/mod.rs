//! Inference: model files, tokenizer, decoder, sampler and the state of one sequence. No tokio, no actix, no sockets.

pub mod backend;
pub mod cache;
pub mod codec;
pub mod detokenizer;
mod error;
pub mod family;
mod info;
pub mod logits;
pub mod network;
pub mod prompt;
mod request;
pub mod sampler;
pub mod sequence;
mod special_tokens;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
pub use info::model_info;
pub use request::{
    Activations, CpuSettings, Embedded, File, FimOrder, FinishReason, Message, ModelInfo, ModelSource, Prompt, Role, Sampled, Sampling,
    Settings,
};

/// The message of a caught panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without a message".into())
}
