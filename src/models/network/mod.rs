//! Networks as data: one `DecoderSpec`, one `Decoder` that runs it, and a small file per `model_type` that maps config.json,
//! or GGUF's metadata, and weight names onto it.

mod block;
mod config;
mod decoder;
mod gguf;
mod llama;
mod qwen2;
mod spec;

pub use block::{Attention, Block, Weights};
pub use decoder::Decoder;
pub use spec::{Activation, AttentionSpec, DecoderSpec, MlpSpec, NormSpec, RopeSpec, WeightNames};

use super::Result;
use super::weights::{Files, ModelFormat};
use config::Config;

/// Upper bounds of sizes in a file: a larger one is a mistake or an attack. The largest open models stay well below.
const HIDDEN_SIZE_MAX: usize = 1 << 16;
const INTERMEDIATE_SIZE_MAX: usize = 1 << 18;
const LAYERS_MAX: usize = 1024;
const HEADS_MAX: usize = 1024;
const HEAD_DIM_MAX: usize = 1024;
const VOCAB_SIZE_MAX: usize = 1 << 21;
const CONTEXT_LENGTH_MAX: usize = 1 << 24;

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

/// Reads the shape of attention that most networks have.
fn attention(heads: usize, kv_heads: usize, head_dim: usize, theta: f32) -> std::result::Result<AttentionSpec, String> {
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} heads cannot be divided evenly among {kv_heads} key-value heads"));
    }
    if head_dim == 0 {
        return Err(format!("{heads} heads are more than hidden_size has room for"));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(format!("heads of {head_dim} dimensions cannot be rotated in pairs"));
    }
    let (scale, rope) = (1.0 / (head_dim as f32).sqrt(), Some(RopeSpec { theta }));
    Ok(AttentionSpec { heads, kv_heads, head_dim, scale, rope, window: None, softcap: None })
}
