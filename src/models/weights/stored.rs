//! What a tensor's bytes are, whatever the format calls it.

use super::{Block, Element};
use safetensors::Dtype;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Plain(Element),
    Blocks(Block),
    /// 32-bit words of an MLX-quantized weight.
    Words,
    /// Of no use to a network.
    Other(Dtype),
}

impl Stored {
    pub(super) const GGML_NAMES: &'static str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and IQ4_NL";

    pub(super) fn of_safetensors(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::Plain(Element::F32),
            Dtype::F16 => Self::Plain(Element::F16),
            Dtype::BF16 => Self::Plain(Element::Bf16),
            Dtype::U32 => Self::Words,
            other => Self::Other(other),
        }
    }

    /// By the number that ggml gives a type.
    pub(super) fn of_ggml(kind: u32) -> Option<Self> {
        Some(match kind {
            0 => Self::Plain(Element::F32),
            1 => Self::Plain(Element::F16),
            30 => Self::Plain(Element::Bf16),
            2 => Self::Blocks(Block::Q4_0),
            3 => Self::Blocks(Block::Q4_1),
            6 => Self::Blocks(Block::Q5_0),
            7 => Self::Blocks(Block::Q5_1),
            8 => Self::Blocks(Block::Q8_0),
            10 => Self::Blocks(Block::Q2_K),
            11 => Self::Blocks(Block::Q3_K),
            12 => Self::Blocks(Block::Q4_K),
            13 => Self::Blocks(Block::Q5_K),
            14 => Self::Blocks(Block::Q6_K),
            20 => Self::Blocks(Block::IQ4_NL),
            _ => return None,
        })
    }

    /// Elements of the smallest unit, and its bytes.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(element) => (1, element.bytes()),
            Self::Blocks(block) => (block.weights(), block.bytes()),
            Self::Words => (1, 4),
            Self::Other(dtype) => (8, dtype.bitsize()),
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(element) => write!(f, "{}", format!("{element:?}").to_uppercase()),
            Self::Blocks(block) => write!(f, "{block:?}"),
            Self::Words => write!(f, "U32"),
            Self::Other(dtype) => write!(f, "{dtype:?}"),
        }
    }
}
