//! Networks as data: one `DecoderSpec`, one `Decoder` that runs it, and a small file per `model_type` that maps config.json,
//! or GGUF's metadata, and weight names onto it.

mod block;
mod config;
mod decoder;
mod gguf;
mod limits;
mod llama;
mod parameters;
mod qwen2;
mod spec;

pub use block::{Attention, Block, Weights};
pub use decoder::Decoder;
pub use spec::{Activation, AttentionSpec, DecoderSpec, MlpSpec, NormSpec, RopeSpec, WeightNames};

use super::Result;
use super::weights::{Files, ModelFormat};
use config::Config;

impl DecoderSpec {
    /// Reads the network from a model's files, by the architecture that they name.
    ///
    /// # Errors
    /// `ModelFile` if the architecture is not supported, or if a size or setting of it is not.
    pub fn parse(files: &Files) -> Result<Self> {
        let unsupported = |other: &str| format!("{other:?} is not supported; supported are llama and qwen2");
        match &files.format {
            ModelFormat::HuggingFace(files) => {
                let config = Config::parse(&files.config)?;
                match config.text("model_type")? {
                    "llama" => llama::spec(&config),
                    "qwen2" => qwen2::spec(&config),
                    other => Err(config.error("model_type", unsupported(other))),
                }
            }
            ModelFormat::Gguf => {
                let gguf = files.gguf()?;
                let key = "general.architecture";
                match gguf.string(key)? {
                    "llama" => llama::of_gguf(&gguf),
                    "qwen2" => qwen2::of_gguf(&gguf),
                    other => Err(gguf.error(key, unsupported(other))),
                }
            }
        }
    }
}
