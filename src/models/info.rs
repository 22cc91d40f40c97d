//! The facts about a model that `models/show` and `doctor` report.

use super::backend::{Backend, Native};
use super::codec::TextCodec;
use super::network::DecoderSpec;
use super::weights::{Files, Tensors};
use super::{ModelInfo, Result, Settings};

/// Collects the facts about a model without packing any weights.
///
/// # Errors
/// `Unsupported` if the backend does not run on this machine.
pub fn model_info(files: &Files, tensors: &Tensors<'_>, spec: &DecoderSpec, codec: &TextCodec, settings: &Settings) -> Result<ModelInfo> {
    let text = |id: &u32| (*id, codec.tokenizer.token_text(*id).unwrap_or_default());
    let backend = Native::describe(&settings.cpu)?;
    Ok(ModelInfo {
        architecture: spec.architecture.clone(),
        family: codec.family.name.into(),
        quantization: files.gguf_name().or_else(|| spec.quantization_name()).unwrap_or_else(|| tensors.element_name()),
        parameters: spec.parameter_count(),
        weight_bytes: files.weight_bytes(),
        layers: spec.layers as u32,
        hidden_size: spec.hidden_size as u32,
        vocab_size: spec.vocab_size as u32,
        context_length: spec.context_length as u32,
        eos: codec.tokenizer.eos_ids().iter().map(text).collect(),
        fim: codec.family.fim.as_ref().map(|fim| fim.order),
        backend: backend.name,
        threads: backend.threads as u32,
    })
}
