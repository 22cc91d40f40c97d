//! Weights as the kernels read them: row panels of quantized blocks, with the scales at the head of each block.

pub(super) mod ints;
pub(super) mod layout;
pub(super) mod pack;
pub(super) mod scales;
