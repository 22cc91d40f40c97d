//! The types of a completion request and its result, shared by all layers.
//!
//! They are sent over the worker's pipe as postcard, which does not support `flatten`, `untagged` or skipped fields.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Sampling parameters. Each has a neutral value that disables it; `Default` is greedy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 is off.
    pub top_k: u32,
    /// Keep the most probable tokens whose probabilities sum to at least this; 1 is off.
    pub top_p: f32,
    /// Keep tokens whose probability is at least this fraction of the highest; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the window; 1 is off.
    pub repetition_penalty: f32,
    /// The last tokens, prompt included, that the three penalties apply to.
    pub repetition_window: u32,
    /// Subtracted once from the logits of tokens in the window; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the window; 0 is off.
    pub frequency_penalty: f32,
    /// Token ids and the bias that is added to each one's logit.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers; each depends on the seed and the token's position only.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// Another file of the repository, given as context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub path: String,
    pub text: String,
}

/// Order of the parts in a fill-in-the-middle prompt (PSM or SPM; Bavarian et al. 2022, arXiv:2207.14255).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FimOrder {
    PrefixSuffixMiddle,
    SuffixPrefixMiddle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    System,
    User,
    Assistant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prompt {
    /// Fill in the middle between prefix and suffix. `order: None` takes the model's default.
    Infill { prefix: String, suffix: String, path: Option<String>, repository: Option<String>, files: Vec<File>, order: Option<FimOrder> },
    /// Text to continue.
    Text(String),
    /// A conversation. `language` selects the syntax of the comments that system messages are written as.
    Chat { messages: Vec<Message>, language: Option<String> },
}

/// A sampled token with its log-probability and the most probable alternatives as `(token, log-probability)`. Both use the
/// natural logarithm and the logits before processors and temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    pub token: u32,
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model produced an EOS token.
    Eos,
    /// A stop sequence was found.
    Stop,
    /// `tokens_max` or the context length was reached.
    Length,
    Cancelled,
}

/// Location of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelSource {
    Embedded,
    /// A folder with config.json, tokenizer.json and safetensors files.
    Folder(PathBuf),
    /// A GGUF file.
    File(PathBuf),
}

/// A model that is built into the binary. `weights` is a safetensors file, aligned to 64 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    pub name: &'static str,
    pub config: &'static [u8],
    pub tokenizer: &'static [u8],
    pub tokenizer_config: &'static [u8],
    pub weights: &'static [u8],
}

/// Number format of activations in products with quantized weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activations {
    /// Eight-bit integers with one scale per group and row. Faster; the error against `F32` is in docs/benchmarks.md.
    #[default]
    Int8,
    F32,
}

/// How a worker runs its model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub cpu: CpuSettings,
    /// Bytes that the prefix cache may hold; 0 switches it off.
    pub cache_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cpu: CpuSettings::default(), cache_bytes: 512 << 20 }
    }
}

/// Settings of the CPU backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSettings {
    /// Threads that compute; 0 is one per core that this process may use.
    pub threads: u32,
    pub activations: Activations,
}

/// Facts about a model, as reported by `models/show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub architecture: String,
    pub family: String,
    /// Such as "mlx 4-bit, groups of 64" or "bf16".
    pub quantization: String,
    pub parameters: u64,
    /// Size of the weight files, in bytes.
    pub weight_bytes: u64,
    pub layers: u32,
    pub hidden_size: u32,
    pub vocab_size: u32,
    /// Tokens of prompt and completion together.
    pub context_length: u32,
    /// The EOS tokens: id and text.
    pub eos: Vec<(u32, String)>,
    /// The default order of a fill-in-the-middle prompt; `None` if the model has no markers.
    pub fim: Option<FimOrder>,
    /// Backend and instruction set, such as "cpu (avx2)".
    pub backend: String,
    pub threads: u32,
}
