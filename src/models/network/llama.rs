//! Llama: RMS norm, RoPE over the two halves of a head, grouped-query attention, gated MLP with SiLU. Llama 1 to 3.0, SmolLM2
//! and many other models have this architecture. Scaled RoPE, as in Llama 3.1 and DeepSeek-Coder, is refused.

use super::config::Config;
use super::gguf;
use super::limits::{
    CONTEXT_LENGTH_MAX, HEAD_DIM_MAX, HEADS_MAX, HIDDEN_SIZE_MAX, INTERMEDIATE_SIZE_MAX, LAYERS_MAX, VOCAB_SIZE_MAX, attention,
};
use super::spec::{Activation, DecoderSpec, MlpSpec, NormSpec, WeightNames};
use crate::models::Result;
use crate::models::weights::Gguf;

pub(super) const NAMES: WeightNames = WeightNames {
    embedding: "model.embed_tokens",
    layers: "model.layers",
    attention_norm: "input_layernorm.weight",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qkv_bias: None,
    attn_output: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm.weight",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    norm: "model.norm.weight",
    lm_head: "lm_head",
};

pub(super) fn spec(config: &Config) -> Result<DecoderSpec> {
    let hidden_size = config.size("hidden_size", HIDDEN_SIZE_MAX)?;
    let heads = config.size("num_attention_heads", HEADS_MAX)?;
    let kv_heads = config.size_or("num_key_value_heads", HEADS_MAX, heads)?;
    let head_dim = config.size_or("head_dim", HEAD_DIM_MAX, hidden_size / heads)?;
    let attention =
        attention(heads, kv_heads, head_dim, config.rope_theta()?).map_err(|reason| config.error("num_key_value_heads", reason))?;
    config.must_be("hidden_act", "silu".into())?;
    config.must_be("attention_bias", false.into())?;
    config.must_be("mlp_bias", false.into())?;
    let (quantization, overrides) = config.quantization()?;
    Ok(DecoderSpec {
        architecture: "llama".into(),
        layers: config.size("num_hidden_layers", LAYERS_MAX)?,
        hidden_size,
        vocab_size: config.size("vocab_size", VOCAB_SIZE_MAX)?,
        context_length: config.size_or("max_position_embeddings", CONTEXT_LENGTH_MAX, 2048)?,
        norm: NormSpec { epsilon: config.number_or("rms_norm_eps", 1e-6)? },
        attention,
        mlp: MlpSpec { intermediate_size: config.size("intermediate_size", INTERMEDIATE_SIZE_MAX)?, activation: Activation::Silu },
        tied: config.flag_or("tie_word_embeddings", false)?,
        names: NAMES,
        rope_interleaved: false,
        quantization,
        overrides,
    })
}

pub(super) fn of_gguf(gguf: &Gguf<'_>) -> Result<DecoderSpec> {
    // llama.cpp's converter interleaves the rows of q and k for this architecture only.
    Ok(DecoderSpec { rope_interleaved: true, ..gguf::spec(gguf)? })
}
