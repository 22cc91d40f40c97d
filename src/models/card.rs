//! A model told in a few facts.

use super::backend::cpu::Cpu;
use super::language::Language;
use super::network::DecoderSpec;
use super::weights::{Files, Tensors};
use super::{Card, Result, Settings};

/// What is known of a model without packing its weights.
pub fn card(files: &Files, tensors: &Tensors<'_>, spec: &DecoderSpec, language: &Language, settings: &Settings) -> Result<Card> {
    let text = |id: &u32| (*id, language.tokenizer.token_text(*id).unwrap_or_default());
    Ok(Card {
        architecture: spec.architecture.clone(),
        family: language.family.name.into(),
        quantization: files.gguf_name().or_else(|| spec.quantization_name()).unwrap_or_else(|| tensors.element_name()),
        parameters: spec.parameter_count(),
        weight_bytes: files.weight_bytes(),
        layers: spec.layers as u32,
        width: spec.width as u32,
        vocabulary: spec.vocabulary as u32,
        context: spec.context as u32,
        eos: language.tokenizer.eos().iter().map(text).collect(),
        fim: language.family.fim.as_ref().map(|fim| fim.order),
        backend: Cpu::describe()?,
        threads: Cpu::threads_for(settings.threads as usize) as u32,
    })
}
