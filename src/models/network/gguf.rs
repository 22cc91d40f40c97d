//! Reads a network from GGUF metadata, by the keys that all architectures share.

use super::limits::{
    CONTEXT_LENGTH_MAX, HEAD_DIM_MAX, HEADS_MAX, HIDDEN_SIZE_MAX, INTERMEDIATE_SIZE_MAX, LAYERS_MAX, VOCAB_SIZE_MAX, attention,
};
use super::spec::{Activation, DecoderSpec, MlpSpec, NormSpec, WeightNames};
use crate::models::Result;
use crate::models::weights::{Gguf, Value};

pub(super) const NAMES: WeightNames = WeightNames {
    embedding: "token_embd",
    layers: "blk",
    attention_norm: "attn_norm.weight",
    qkv: ["attn_q", "attn_k", "attn_v"],
    qkv_bias: None,
    attn_output: "attn_output",
    mlp_norm: "ffn_norm.weight",
    gate: "ffn_gate",
    up: "ffn_up",
    down: "ffn_down",
    norm: "output_norm.weight",
    lm_head: "output",
};

/// Keys that change the arithmetic in a way that is not implemented, unless they have this value.
const UNSUPPORTED: &[(&str, f64)] = &[
    ("expert_count", 0.0),
    ("attention.scale", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.sliding_window", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 0.0),
    ("residual_scale", 0.0),
    ("embedding_scale", 0.0),
    ("rope.scaling.factor", 1.0),
    ("rope.scale_linear", 1.0),
];

/// The spec, without the settings that are specific to an architecture.
pub(super) fn spec(gguf: &Gguf<'_>) -> Result<DecoderSpec> {
    let architecture = gguf.string("general.architecture")?;
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str, max| gguf.size(&key(name), max);
    // Files that were merged from several have 0.
    if let Some(Value::Int(2..)) = gguf.get("split.count") {
        return Err(gguf.error("split.count", "this model is split over several files; supported is one"));
    }
    let scaling = key("rope.scaling.type");
    if let Some(kind) = gguf.string_opt(&scaling)?.filter(|kind| *kind != "none") {
        return Err(gguf.error(&scaling, format!("{kind:?} is not supported; only \"none\" is")));
    }
    for (name, neutral) in UNSUPPORTED {
        let value = gguf.get(&key(name));
        let is_neutral = match value {
            None => true,
            Some(Value::Int(number)) => number as f64 == *neutral,
            Some(Value::Float(number)) => number == *neutral,
            Some(Value::Bool(_) | Value::String(_) | Value::Array(_)) => false,
        };
        if !is_neutral {
            return Err(gguf.error(&key(name), format!("is not supported; only {neutral} is")));
        }
    }
    if gguf.tensors.iter().any(|tensor| tensor.name == "rope_freqs.weight") {
        return Err(gguf.error("rope_freqs.weight", "rotary frequencies of a model's own are not supported"));
    }
    let hidden_size = size("embedding_length", HIDDEN_SIZE_MAX)?;
    let heads = size("attention.head_count", HEADS_MAX)?;
    let kv_heads = gguf.size_or(&key("attention.head_count_kv"), HEADS_MAX, heads)?;
    let head_dim = gguf.size_or(&key("attention.key_length"), HEAD_DIM_MAX, hidden_size / heads)?;
    let theta = gguf.positive_or(&key("rope.freq_base"), 10_000.0)?;
    let attention = attention(heads, kv_heads, head_dim, theta).map_err(|reason| gguf.error(&key("attention.head_count_kv"), reason))?;
    for name in ["attention.value_length", "rope.dimension_count"] {
        if gguf.size_or(&key(name), HEAD_DIM_MAX, head_dim)? != head_dim {
            return Err(gguf.error(&key(name), format!("is not supported; only {head_dim} is, the size of a head")));
        }
    }
    Ok(DecoderSpec {
        architecture: architecture.into(),
        layers: size("block_count", LAYERS_MAX)?,
        hidden_size,
        vocab_size: vocab_size(gguf)?,
        context_length: size("context_length", CONTEXT_LENGTH_MAX)?,
        norm: NormSpec { epsilon: gguf.positive_or(&key("attention.layer_norm_rms_epsilon"), 1e-6)? },
        attention,
        mlp: MlpSpec { intermediate_size: size("feed_forward_length", INTERMEDIATE_SIZE_MAX)?, activation: Activation::Silu },
        tied: gguf.tensors.iter().all(|tensor| tensor.name != "output.weight"),
        names: NAMES,
        rope_interleaved: false,
        quantization: None,
        overrides: Vec::new(),
    })
}

/// The rows of the embedding, because the metadata often lack this number. Each row is one token of the file's list.
fn vocab_size(gguf: &Gguf<'_>) -> Result<usize> {
    let name = "token_embd.weight";
    let embedding = gguf.tensors.iter().find(|tensor| tensor.name == name).ok_or_else(|| gguf.error(name, "missing"))?;
    let rows = match *embedding.shape {
        [rows, _] if rows <= VOCAB_SIZE_MAX => rows,
        _ => return Err(gguf.error(name, format!("shape {:?}; supported are up to {VOCAB_SIZE_MAX} rows", embedding.shape))),
    };
    let key = "tokenizer.ggml.tokens";
    match gguf.array(key)?.len() {
        tokens if tokens == rows => Ok(rows),
        tokens => Err(gguf.error(key, format!("{tokens} tokens where {name} has {rows} rows"))),
    }
}
