//! Code models with the common fill-in-the-middle markers.

use super::{Family, qwen_coder_markers};
use crate::models::FimOrder;

pub(super) const FAMILY: Family = Family {
    name: "code",
    eos: &["<|endoftext|>", "</s>"],
    fim_eos: &["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"],
    fim: Some(qwen_coder_markers(FimOrder::PrefixSuffixMiddle)),
};
