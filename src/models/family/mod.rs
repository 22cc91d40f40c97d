//! Model families: the fill-in-the-middle (FIM) markers of a model, which its files do not declare, and additional EOS tokens.

mod code;
mod generic;
mod qwen;
mod souffleur;

use super::FimOrder;
use super::tokenizer::Tokenizer;

#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    pub name: &'static str,
    /// Tokens that end any completion. Those that a vocabulary lacks are skipped.
    pub eos: &'static [&'static str],
    /// Additional tokens that end a fill-in-the-middle completion.
    pub fim_eos: &'static [&'static str],
    pub fim: Option<FimMarkers>,
}

/// The control tokens that mark the parts of a fill-in-the-middle prompt, as they appear in the vocabulary.
#[derive(Debug, PartialEq, Eq)]
pub struct FimMarkers {
    /// The order with which the model completes better. A request may override it.
    pub order: FimOrder,
    pub prefix: &'static str,
    pub suffix: &'static str,
    pub middle: &'static str,
    /// Precedes the name of the repository.
    pub repository_marker: &'static str,
    /// Precedes the path of a file.
    pub file_marker: &'static str,
}

/// The markers of Qwen2.5-Coder, also used by other code models.
const fn qwen_coder_markers(order: FimOrder) -> FimMarkers {
    FimMarkers {
        order,
        prefix: "<|fim_prefix|>",
        suffix: "<|fim_suffix|>",
        middle: "<|fim_middle|>",
        repository_marker: "<|repo_name|>",
        file_marker: "<|file_sep|>",
    }
}

/// Chooses the first family that matches, in this order:
///
/// 1. `souffleur`: the model's name contains "souffleur".
/// 2. `qwen`: the name contains "qwen" or the architecture is `qwen2`, and the vocabulary has this family's prefix, suffix and
///    middle markers as control tokens.
/// 3. `code`: the vocabulary has the three markers of `code`.
/// 4. `generic`: any model.
///
/// Upper and lower case of the name are the same.
pub fn detect(name: &str, architecture: &str, tokenizer: &Tokenizer) -> &'static Family {
    let name = name.to_lowercase();
    let in_vocabulary = |fim: &FimMarkers| [fim.prefix, fim.suffix, fim.middle].iter().all(|marker| tokenizer.control(marker).is_some());
    let has_markers = |family: &Family| family.fim.as_ref().is_some_and(in_vocabulary);
    if name.contains("souffleur") {
        &souffleur::FAMILY
    } else if (name.contains("qwen") || architecture == "qwen2") && has_markers(&qwen::FAMILY) {
        &qwen::FAMILY
    } else if has_markers(&code::FAMILY) {
        &code::FAMILY
    } else {
        &generic::FAMILY
    }
}
