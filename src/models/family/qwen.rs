//! Qwen2.5-Coder: one vocabulary for all sizes, base and instruct.

use super::{Family, Fim};
use crate::models::FimOrder;

pub(super) const FAMILY: Family = Family {
    name: "qwen",
    eos: &["<|endoftext|>", "<|im_end|>"],
    infill_eos: &["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    fim: Some(Fim {
        order: FimOrder::PrefixSuffixMiddle,
        prefix: "<|fim_prefix|>",
        suffix: "<|fim_suffix|>",
        middle: "<|fim_middle|>",
        repository: "<|repo_name|>",
        file: "<|file_sep|>",
    }),
};
