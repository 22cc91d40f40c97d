//! A decoder-only network as data.

use crate::models::weights::Quantization;

/// A decoder-only network.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// `model_type` of config.json, `general.architecture` of GGUF.
    pub architecture: String,
    pub layers: usize,
    pub hidden_size: usize,
    pub vocab_size: usize,
    /// Tokens of prompt and completion together.
    pub context_length: usize,
    /// The norms of every layer, and the final one.
    pub norm: NormSpec,
    pub attention: AttentionSpec,
    pub mlp: MlpSpec,
    /// The output head is the embedding table.
    pub tied: bool,
    pub names: WeightNames,
    /// The files hold the rows of q and k in pairs that are rotated together, as GGUF does for Llama. The decoder rotates the
    /// first half of a head against its second half.
    pub rope_interleaved: bool,
    pub(crate) quantization: Option<Quantization>,
    /// MLX's per-layer overrides by weight name; `None` leaves that weight plain.
    pub(crate) overrides: Vec<(String, Option<Quantization>)>,
}

/// Grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    pub heads: usize,
    /// Heads of keys and values; each is shared by `heads / kv_heads` query heads.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// The factor of q·k; `1 / sqrt(head_dim)` in most networks.
    pub scale: f32,
    /// `None`: positions are not encoded.
    pub rope: Option<RopeSpec>,
    /// Positions that a token attends to, itself included; `None`: all.
    pub window: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
}

/// Rotary position embedding (Su et al. 2021) over the two halves of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeSpec {
    pub theta: f32,
}

/// A gated MLP: `down(activation(gate(x)) * up(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpSpec {
    pub intermediate_size: usize,
    pub activation: Activation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// GELU by its tanh approximation (Hendrycks and Gimpel 2016).
    GeluTanh,
}

/// `x / sqrt(mean(x^2) + epsilon) * weight` (Zhang and Sennrich 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    pub epsilon: f32,
}

/// The names of the weights in the files. A layer's names follow `{layers}.{index}.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightNames {
    pub embedding: &'static str,
    pub layers: &'static str,
    pub attention_norm: &'static str,
    pub qkv: [&'static str; 3],
    /// Biases of the three, if the network has them.
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
    pub fn quantization(&self, base: &str) -> Option<Quantization> {
        self.overrides.iter().find(|(name, _)| name == base).map_or(self.quantization, |(_, q)| *q)
    }

    /// Such as "mlx 4-bit, groups of 64"; `None` for plain weights.
    pub fn quantization_name(&self) -> Option<String> {
        self.quantization.map(|Quantization { bits, group }| format!("mlx {bits}-bit, groups of {group}"))
    }
}
