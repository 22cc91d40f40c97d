//! A network is data: one `DecoderSpec`, one `Decoder` that runs it, and a small file per `model_type`
//! that maps `config.json`, or GGUF's metadata, and weight names onto it.

mod config;
mod decoder;
mod gguf;
mod llama;
mod qwen2;

pub use decoder::Decoder;

use super::weights::{Files, ModelFormat, Parameter, Quantization};
use super::{Activations, Result};
use config::Config;

/// Beyond these a size in a file is a mistake or an attack; the largest open models stay well below.
const HIDDEN_SIZE_MAX: usize = 1 << 16;
const INTERMEDIATE_SIZE_MAX: usize = 1 << 18;
const LAYERS_MAX: usize = 1024;
const HEADS_MAX: usize = 1024;
const HEAD_DIM_MAX: usize = 1024;
const VOCAB_SIZE_MAX: usize = 1 << 21;
const CONTEXT_LENGTH_MAX: usize = 1 << 24;

/// A decoder-only network, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// `model_type` of `config.json`, `general.architecture` of GGUF.
    pub architecture: String,
    pub layers: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    pub norm_epsilon: f32,
    pub rope_theta: f32,
    /// The output head is the embedding table.
    pub tied: bool,
    pub names: WeightNames,
    /// The rows of q and k lie as pairs that are rotated together, not as first halves and second halves.
    pub rope_interleaved: bool,
    quantization: Option<Quantization>,
    /// MLX's per-layer overrides by weight name; `None` leaves that weight plain.
    overrides: Vec<(String, Option<Quantization>)>,
}

/// How the weights are called in the files; a layer's names follow `{layers}.{index}.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightNames {
    pub embedding: &'static str,
    pub layers: &'static str,
    pub attention_norm: &'static str,
    pub qkv: [&'static str; 3],
    /// Vectors added behind the three, where the network has them.
    pub qkv_bias: Option<[&'static str; 3]>,
    pub attn_output: &'static str,
    pub mlp_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub norm: &'static str,
    pub lm_head: &'static str,
}

impl DecoderSpec {
    /// Reads what the files say of their network; which it is, they say by one word.
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

    pub fn quantization(&self, base: &str) -> Option<Quantization> {
        self.overrides.iter().find(|(name, _)| name == base).map_or(self.quantization, |(_, q)| *q)
    }

    /// Such as "mlx 4-bit, groups of 64"; `None` for plain weights.
    pub fn quantization_name(&self) -> Option<String> {
        self.quantization.map(|Quantization { bits, group }| format!("mlx {bits}-bit, groups of {group}"))
    }

    /// Keys and values of `tokens` positions, in elements of two bytes beside int8 activations and of four beside f32.
    pub fn cache_bytes(&self, tokens: usize, activations: Activations) -> u64 {
        let element = match activations {
            Activations::Int8 => 2,
            Activations::F32 => 4,
        };
        (self.layers * self.kv_heads * self.head_dim * 2 * element * tokens) as u64
    }

    /// Everything the network is made of, by name and shape.
    pub fn parameters(&self) -> Vec<Parameter> {
        let sized = |name: String, length| Parameter::Vector { name, length };
        let vector = |name: String| sized(name, self.hidden_size);
        let matrix = |base: String, rows, columns| Parameter::Matrix { base, rows, columns };
        let n = &self.names;
        let mut all = vec![matrix(n.embedding.into(), self.vocab_size, self.hidden_size), vector(n.norm.into())];
        if !self.tied {
            all.push(matrix(n.lm_head.into(), self.vocab_size, self.hidden_size));
        }
        for index in 0..self.layers {
            let at = |name: &str| self.layer_name(index, name);
            let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
            let biases = n.qkv_bias.into_iter().flat_map(|names| names.into_iter().zip([q, kv, kv]));
            all.extend(biases.map(|(name, length)| sized(at(name), length)));
            all.extend([
                vector(at(n.attention_norm)),
                matrix(at(n.qkv[0]), q, self.hidden_size),
                matrix(at(n.qkv[1]), kv, self.hidden_size),
                matrix(at(n.qkv[2]), kv, self.hidden_size),
                matrix(at(n.attn_output), self.hidden_size, q),
                vector(at(n.mlp_norm)),
                matrix(at(n.gate), self.intermediate_size, self.hidden_size),
                matrix(at(n.up), self.intermediate_size, self.hidden_size),
                matrix(at(n.down), self.hidden_size, self.intermediate_size),
            ]);
        }
        all
    }

    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(Parameter::elements).sum()
    }

    fn layer_name(&self, index: usize, name: &str) -> String {
        format!("{}.{index}.{name}", self.names.layers)
    }
}

/// Heads must share keys and values evenly, and have a size.
fn check_heads(heads: usize, kv_heads: usize, head_dim: usize) -> std::result::Result<(), String> {
    match () {
        () if !heads.is_multiple_of(kv_heads) => Err(format!("{heads} heads can't share {kv_heads} evenly")),
        () if head_dim == 0 => Err(format!("{heads} heads are more than the network is wide")),
        () if !head_dim.is_multiple_of(2) => Err(format!("heads of {head_dim} can't be rotated in pairs")),
        () => Ok(()),
    }
}
