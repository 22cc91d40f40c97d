//! The embedded model.

use super::{Family, qwen_coder_markers};
use crate::models::FimOrder;

pub(super) const FAMILY: Family = Family {
    name: "souffleur",
    eos: &["<|endoftext|>"],
    fim_eos: &["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"],
    fim: Some(qwen_coder_markers(FimOrder::SuffixPrefixMiddle)),
};
