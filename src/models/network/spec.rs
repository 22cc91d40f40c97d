//! A decoder-only network as data.

use super::block::{Attention, Block, LinearSpec, NormWeight, PartSpec, Visitor, Weights};
use crate::models::Result;
use crate::models::weights::{Parameter, Quantization};

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
    /// Of every layer, as the other two.
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
    /// What q·k is multiplied by; `1 / sqrt(head_dim)` in most networks.
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

    /// Every weight of the network by name and shape.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut list = ParameterList::default();
        self.weights().visit(&mut list).expect("listing a weight can't fail");
        list.0
    }

    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(Parameter::elements).sum()
    }

    /// The specs of all weights.
    pub(super) fn weights(&self) -> Weights<LinearSpec, NormWeight> {
        Weights {
            embedding: linear(self.hidden_size, vec![part(self.names.embedding.into(), self.vocab_size)]),
            blocks: (0..self.layers).map(|index| self.block(index)).collect(),
            norm: self.norm_weight(self.names.norm.into()),
            lm_head: (!self.tied).then(|| linear(self.hidden_size, vec![part(self.names.lm_head.into(), self.vocab_size)])),
        }
    }

    fn block(&self, index: usize) -> Block<LinearSpec, NormWeight> {
        let n = &self.names;
        let at = |name: &str| format!("{}.{index}.{name}", n.layers);
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.attention;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let bias = |index: usize| n.qkv_bias.map(|names| at(names[index]));
        let deinterleave = self.rope_interleaved.then_some(head_dim);
        let qkv = vec![
            PartSpec { base: at(n.qkv[0]), rows: q, bias: bias(0), deinterleave },
            PartSpec { base: at(n.qkv[1]), rows: kv, bias: bias(1), deinterleave },
            PartSpec { base: at(n.qkv[2]), rows: kv, bias: bias(2), deinterleave: None },
        ];
        let intermediate = self.mlp.intermediate_size;
        Block {
            attention: Attention { spec: self.attention.clone(), q_norm: None, k_norm: None },
            mlp: self.mlp.clone(),
            attention_norm: self.norm_weight(at(n.attention_norm)),
            qkv: linear(self.hidden_size, qkv),
            attn_output: linear(q, vec![part(at(n.attn_output), self.hidden_size)]),
            mlp_norm: self.norm_weight(at(n.mlp_norm)),
            gate_up: linear(self.hidden_size, vec![part(at(n.gate), intermediate), part(at(n.up), intermediate)]),
            down: linear(intermediate, vec![part(at(n.down), self.hidden_size)]),
        }
    }

    fn norm_weight(&self, name: String) -> NormWeight {
        NormWeight { name, length: self.hidden_size }
    }
}

fn linear(columns: usize, parts: Vec<PartSpec>) -> LinearSpec {
    LinearSpec { columns, parts }
}

fn part(base: String, rows: usize) -> PartSpec {
    PartSpec { base, rows, bias: None, deinterleave: None }
}

/// Lists the weights that it visits.
#[derive(Default)]
pub(super) struct ParameterList(Vec<Parameter>);

impl Visitor for ParameterList {
    type Linear = ();
    type Norm = ();

    fn linear(&mut self, LinearSpec { columns, parts }: LinearSpec) -> Result<()> {
        for PartSpec { base, rows, bias, .. } in parts {
            self.0.push(Parameter::Matrix { base, rows, columns });
            self.0.extend(bias.map(|name| Parameter::Vector { name, length: rows }));
        }
        Ok(())
    }

    fn norm(&mut self, NormWeight { name, length }: NormWeight) -> Result<()> {
        self.0.push(Parameter::Vector { name, length });
        Ok(())
    }
}
