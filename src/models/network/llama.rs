//! Llama: RMS norm, rotary positions over half-split pairs, grouped heads, gated SiLU. Llama 1 and 2,
//! SmolLM2, DeepSeek-Coder and many more have this shape.

use super::{Config, DecoderSpec, Names};
use crate::models::{Error, Result};
use serde_json::Value;

const NAMES: Names = Names {
    embedding: "model.embed_tokens",
    layers: "model.layers",
    attention_norm: "input_layernorm.weight",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    output: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm.weight",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    norm: "model.norm.weight",
    head: "lm_head",
};

/// Beyond these a size in `config.json` is a mistake or an attack; the largest open models stay well below.
const WIDTH_MAX: usize = 1 << 16;
const HIDDEN_MAX: usize = 1 << 18;
const LAYERS_MAX: usize = 1024;
const HEADS_MAX: usize = 1024;
const VOCABULARY_MAX: usize = 1 << 21;
const CONTEXT_MAX: usize = 1 << 24;

pub(super) fn spec(config: &Config<'_>) -> Result<DecoderSpec> {
    let width = config.size("hidden_size", WIDTH_MAX)?;
    let heads = config.size("num_attention_heads", HEADS_MAX)?;
    let kv_heads = config.size_or("num_key_value_heads", HEADS_MAX, heads)?;
    let head_size = config.size_or("head_dim", 1024, width / heads)?;
    if heads % kv_heads != 0 {
        return Err(Error::file("config.json", "num_key_value_heads", format!("{heads} heads can't share {kv_heads} evenly")));
    }
    config.must_be("hidden_act", "silu".into())?;
    config.must_be("attention_bias", false.into())?;
    config.must_be("mlp_bias", false.into())?;
    config.must_be("rope_scaling", Value::Null)?;
    let (quantization, overrides) = config.quantization()?;
    Ok(DecoderSpec {
        architecture: "llama".into(),
        layers: config.size("num_hidden_layers", LAYERS_MAX)?,
        width,
        hidden: config.size("intermediate_size", HIDDEN_MAX)?,
        heads,
        kv_heads,
        head_size,
        vocabulary: config.size("vocab_size", VOCABULARY_MAX)?,
        context: config.size_or("max_position_embeddings", CONTEXT_MAX, 2048)?,
        norm_epsilon: config.number_or("rms_norm_eps", 1e-6)?,
        rope_base: config.number_or("rope_theta", 10_000.0)?,
        tied: config.flag_or("tie_word_embeddings", false)?,
        eos: config.eos(),
        names: NAMES,
        quantization,
        overrides,
    })
}
