//! Qwen2.5-Coder, all sizes, base and instruct: they share one vocabulary.

use super::{Family, qwen_coder_markers};
use crate::models::FimOrder;

pub(super) const FAMILY: Family = Family {
    name: "qwen",
    eos: &["<|endoftext|>", "<|im_end|>"],
    fim_eos: &["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    fim: Some(qwen_coder_markers(FimOrder::PrefixSuffixMiddle)),
};
