//! Element types of tensors, by ggml's type number and safetensors' dtype.

use super::GgmlBlock;
use half::{bf16, f16};
use safetensors::Dtype;
use std::fmt;

/// Element type of unquantized tensors and of the scales and biases of MLX's quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

impl FloatType {
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Reads element `index` of little-endian `bytes`.
    pub fn get(self, bytes: &[u8], index: usize) -> f32 {
        let two = || [bytes[index * 2], bytes[index * 2 + 1]];
        match self {
            Self::F32 => f32::from_le_bytes(bytes[index * 4..index * 4 + 4].try_into().expect("four bytes")),
            Self::F16 => f16::from_le_bytes(two()).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(two()).to_f32(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    Float(FloatType),
    GgmlBlocks(GgmlBlock),
    /// Packed integers of an MLX-quantized weight.
    U32,
    /// Not supported in a parameter.
    Other(Dtype),
}

impl TensorType {
    pub(super) const GGML_NAMES: &'static str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and IQ4_NL";

    pub(super) fn from_safetensors(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::Float(FloatType::F32),
            Dtype::F16 => Self::Float(FloatType::F16),
            Dtype::BF16 => Self::Float(FloatType::Bf16),
            Dtype::U32 => Self::U32,
            other => Self::Other(other),
        }
    }

    /// The type with ggml's number `kind` (`enum ggml_type`), its elements per block and its bytes per block.
    pub(super) fn from_ggml(kind: u32) -> Option<(Self, usize, usize)> {
        let float = |element: FloatType| (Self::Float(element), 1, element.bytes());
        let blocks = |block: GgmlBlock| (Self::GgmlBlocks(block), block.elements(), block.bytes());
        Some(match kind {
            0 => float(FloatType::F32),
            1 => float(FloatType::F16),
            30 => float(FloatType::Bf16),
            2 => blocks(GgmlBlock::Q4_0),
            3 => blocks(GgmlBlock::Q4_1),
            6 => blocks(GgmlBlock::Q5_0),
            7 => blocks(GgmlBlock::Q5_1),
            8 => blocks(GgmlBlock::Q8_0),
            10 => blocks(GgmlBlock::Q2_K),
            11 => blocks(GgmlBlock::Q3_K),
            12 => blocks(GgmlBlock::Q4_K),
            13 => blocks(GgmlBlock::Q5_K),
            14 => blocks(GgmlBlock::Q6_K),
            20 => blocks(GgmlBlock::IQ4_NL),
            _ => return None,
        })
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(element) => write!(f, "{}", format!("{element:?}").to_uppercase()),
            Self::GgmlBlocks(block) => write!(f, "{block:?}"),
            Self::U32 => write!(f, "U32"),
            Self::Other(dtype) => write!(f, "{dtype:?}"),
        }
    }
}
