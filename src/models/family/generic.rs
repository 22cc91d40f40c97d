//! Models of which nothing is known but their files.

use super::Family;

pub(super) const FAMILY: Family = Family { name: "generic", eos: &["<|endoftext|>", "</s>"], fim_eos: &[], fim: None };
