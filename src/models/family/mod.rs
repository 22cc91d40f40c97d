//! A family is data: how to talk to a kind of model, where its own files don't say.

mod code;
mod generic;
mod qwen;
mod souffleur;

use super::FimOrder;
use super::tokenizer::Tokenizer;

#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    pub name: &'static str,
    /// End a text of any kind; those that a vocabulary lacks are skipped.
    pub eos: &'static [&'static str],
    /// End the middle of an infill as well.
    pub fim_eos: &'static [&'static str],
    pub fim: Option<Fim>,
}

/// Markers of a fill-in-the-middle prompt.
#[derive(Debug, PartialEq, Eq)]
pub struct Fim {
    /// The order that reads better.
    pub order: FimOrder,
    pub prefix: &'static str,
    pub suffix: &'static str,
    pub middle: &'static str,
    pub repository: &'static str,
    pub file: &'static str,
}

/// The markers that Qwen2.5-Coder brought and most code models share by now.
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

/// The first rule that fits: the model's name or network, then the markers in its vocabulary.
pub fn detect(name: &str, architecture: &str, tokenizer: &Tokenizer) -> &'static Family {
    let name = name.to_lowercase();
    let has = |fim: &Fim| [fim.prefix, fim.suffix, fim.middle].iter().all(|marker| tokenizer.control(marker).is_some());
    let marked = |family: &Family| family.fim.as_ref().is_some_and(has);
    match () {
        () if name.contains("souffleur") => &souffleur::FAMILY,
        () if (name.contains("qwen") || architecture == "qwen2") && marked(&qwen::FAMILY) => &qwen::FAMILY,
        () if marked(&code::FAMILY) => &code::FAMILY,
        () => &generic::FAMILY,
    }
}
