//! Model families: prompt markers and EOS tokens that a model's files do not declare.

mod code;
mod generic;
mod qwen;
mod souffleur;

use super::FimOrder;
use super::tokenizer::Tokenizer;

#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    pub name: &'static str,
    /// EOS tokens of every completion. Tokens that a vocabulary lacks are skipped.
    pub eos: &'static [&'static str],
    /// Additional EOS tokens of a fill-in-the-middle completion.
    pub fim_eos: &'static [&'static str],
    pub fim: Option<Fim>,
}

/// Markers of a fill-in-the-middle prompt, by their text in the vocabulary.
#[derive(Debug, PartialEq, Eq)]
pub struct Fim {
    /// The default order: the one with which the model completes better.
    pub order: FimOrder,
    pub prefix: &'static str,
    pub suffix: &'static str,
    pub middle: &'static str,
    pub repository: &'static str,
    pub file: &'static str,
}

/// The markers of Qwen2.5-Coder, which other code models have adopted.
const fn common_fim(order: FimOrder) -> Fim {
    Fim {
        order,
        prefix: "<|fim_prefix|>",
        suffix: "<|fim_suffix|>",
        middle: "<|fim_middle|>",
        repository: "<|repo_name|>",
        file: "<|file_sep|>",
    }
}

/// Chooses the family by the model's name or architecture and by the markers in its vocabulary; the first match wins.
pub fn detect(name: &str, architecture: &str, tokenizer: &Tokenizer) -> &'static Family {
    let name = name.to_lowercase();
    let has = |fim: &Fim| [fim.prefix, fim.suffix, fim.middle].iter().all(|marker| tokenizer.control(marker).is_some());
    let has_markers = |family: &Family| family.fim.as_ref().is_some_and(has);
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
