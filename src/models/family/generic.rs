//! Models without fill-in-the-middle markers.

use super::Family;

pub(super) const FAMILY: Family = Family { name: "generic", eos: &["<|endoftext|>", "</s>"], fim_eos: &[], fim: None };
