//! What a completion is asked with and answered with: the types that cross all rooms.
//!
//! They travel on the worker's pipe as postcard, so no `flatten`, `untagged` or skipped fields.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How the next token is chosen. Neutral values switch a part off; `Default` is greedy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 is off.
    pub top_k: u32,
    /// Keep the likeliest tokens that together reach this probability; 1 is off.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// Divides (multiplies when negative) the logits of tokens seen in the window; 1 is off.
    pub repetition_penalty: f32,
    /// Tokens, prompt included, that the three penalties look back over.
    pub repetition_window: u32,
    /// Subtracted once from the logits of tokens seen in the window.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the window.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// With the token's position it fixes every draw.
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

/// A file of the project, as context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub path: String,
    pub text: String,
}

/// Where the suffix stands in a fill-in-the-middle prompt.
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
    /// The hole between prefix and suffix. `order: None` takes the model's better one.
    Infill { prefix: String, suffix: String, path: Option<String>, repository: Option<String>, files: Vec<File>, order: Option<FimOrder> },
    /// Text to go on from.
    Text(String),
    /// A conversation; `language` picks the comment syntax of a comment-style prompt.
    Chat { messages: Vec<Message>, language: Option<String> },
}

/// A chosen token with its log-probability (natural, before temperature) and the likeliest others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    pub token: u32,
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model ended its text.
    Eos,
    /// A stop sequence appeared.
    Stop,
    /// `tokens_max` or the context was reached.
    Length,
    Cancelled,
}

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelSource {
    Embedded,
    /// config.json, tokenizer.json and safetensors.
    Folder(PathBuf),
    /// A GGUF file, which holds all of that.
    File(PathBuf),
}

/// A model that lives in the binary. `weights` starts at a 64-byte boundary.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    pub name: &'static str,
    pub config: &'static [u8],
    pub tokenizer: &'static [u8],
    pub tokenizer_config: &'static [u8],
    pub weights: &'static [u8],
}

/// What activations are while they meet quantized weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activations {
    /// Eight-bit integers with one scale per group and row: fast, within a stated error of `F32`.
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

/// What there is to know of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub architecture: String,
    pub family: String,
    /// Such as "mlx 4-bit, groups of 64" or "bf16".
    pub quantization: String,
    pub parameters: u64,
    /// Bytes of the weights as they lie on disk.
    pub weight_bytes: u64,
    pub layers: u32,
    pub hidden_size: u32,
    pub vocab_size: u32,
    /// Tokens of prompt and answer together.
    pub context_length: u32,
    /// The tokens that end a text, by id and text.
    pub eos: Vec<(u32, String)>,
    /// The default order of a fill-in-the-middle prompt; `None` when the model has no markers.
    pub fim: Option<FimOrder>,
    /// Backend and instruction set, such as "cpu (avx2)".
    pub backend: String,
    pub threads: u32,
}
