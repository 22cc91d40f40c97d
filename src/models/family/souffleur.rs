//! Souffleur's own embedded model; its model card has the ids and the orders' figures.

use super::{Family, Fim};
use crate::models::FimOrder;

pub(super) const FAMILY: Family = Family {
    name: "souffleur",
    eos: &["<|endoftext|>"],
    infill_eos: &["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"],
    fim: Some(Fim {
        order: FimOrder::SuffixPrefixMiddle,
        prefix: "<|fim_prefix|>",
        suffix: "<|fim_suffix|>",
        middle: "<|fim_middle|>",
        repository: "<|repo_name|>",
        file: "<|file_sep|>",
    }),
};
