//! The embedded model.

use super::{Family, common_fim};
use crate::models::FimOrder;

pub(super) const FAMILY: Family = Family {
    name: "souffleur",
    eos: &["<|endoftext|>"],
    fim_eos: &["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"],
    fim: Some(common_fim(FimOrder::SuffixPrefixMiddle)),
};
