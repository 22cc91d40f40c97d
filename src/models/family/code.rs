//! Code models with the markers that most of them share today.

use super::{Family, Fim};
use crate::models::FimOrder;

pub(super) const FAMILY: Family = Family {
    name: "code",
    eos: &["<|endoftext|>", "</s>"],
    infill_eos: &["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"],
    fim: Some(Fim {
        order: FimOrder::PrefixSuffixMiddle,
        prefix: "<|fim_prefix|>",
        suffix: "<|fim_suffix|>",
        middle: "<|fim_middle|>",
        repository: "<|repo_name|>",
        file: "<|file_sep|>",
    }),
};
