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

    /// By the number that ggml gives a type; with it the elements of its smallest unit, and that unit's bytes.
    pub(super) fn of_ggml(kind: u32) -> Option<(Self, usize, usize)> {
        let plain = |element: Element| (Self::Plain(element), 1, element.bytes());
        let blocks = |block: Block| (Self::Blocks(block), block.weights(), block.bytes());
        Some(match kind {
            0 => plain(Element::F32),
            1 => plain(Element::F16),
            30 => plain(Element::Bf16),
            2 => blocks(Block::Q4_0),
            3 => blocks(Block::Q4_1),
            6 => blocks(Block::Q5_0),
            7 => blocks(Block::Q5_1),
            8 => blocks(Block::Q8_0),
            10 => blocks(Block::Q2_K),
            11 => blocks(Block::Q3_K),
            12 => blocks(Block::Q4_K),
            13 => blocks(Block::Q5_K),
            14 => blocks(Block::Q6_K),
            20 => blocks(Block::IQ4_NL),
            _ => return None,
        })
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
