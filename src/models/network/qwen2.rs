//! Qwen2 and 2.5: Llama's shape with biases on q, k and v.

use super::config::Config;
use super::spec::{DecoderSpec, WeightNames};
use super::{gguf, llama};
use crate::models::Result;
use crate::models::weights::Gguf;

pub(super) fn spec(config: &Config) -> Result<DecoderSpec> {
    config.must_be("use_sliding_window", false.into())?;
    let names = WeightNames { qkv_bias: Some(["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"]), ..llama::NAMES };
    Ok(DecoderSpec { architecture: "qwen2".into(), names, ..llama::spec(config)? })
}

pub(super) fn of_gguf(gguf: &Gguf<'_>) -> Result<DecoderSpec> {
    let names = WeightNames { qkv_bias: Some(["attn_q.bias", "attn_k.bias", "attn_v.bias"]), ..gguf::NAMES };
    Ok(DecoderSpec { names, ..gguf::spec(gguf)? })
}
