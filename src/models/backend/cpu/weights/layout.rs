//! The memory layout of packed weights: row panels of eight rows (as in BLIS), interleaved so that one vector holds the same
//! columns of all eight rows.
//!
//! ```text
//! row panel = 8 output rows x all input columns, one sequential stream of blocks
//! block     = 8 rows x BLOCK_INPUTS columns
//!   float:      [BLOCK_INPUTS][8 rows] elements
//!   quantized:  [scales of all groups][k-blocks]
//! k-block   = 8 rows x 32 columns, as 8 k-groups: k-group g has columns 4g..4g+4 of each row (see `ints`)
//! ```
//!
//! A k-group times four broadcast activations adds to one sum per row, in eight lanes. So nothing is summed across lanes, scales
//! are vectors, each thread reads one stream, and the order of sums does not depend on the number of activation rows.

use super::super::isa::{Isa, K_BLOCK, LANES, SIGNED_WEIGHTS};
use super::ints::{I8, IntEncoding, U4, U5, U6};
use super::scales::{BlockScales, KQuantScale, KQuantScaleMin, ScaleBias, ScaleOnly};
use crate::models::weights::FloatType;
use std::marker::PhantomData;

/// Inputs of the largest block: a K-quant super-block.
pub(in super::super) const BLOCK_INPUTS_MAX: usize = 256;

/// A layout of the blocks of a row panel.
pub(in super::super) trait Layout {
    /// Inputs of one block.
    const BLOCK_INPUTS: usize;
    /// Bytes of one block of eight rows.
    const BLOCK_BYTES: usize;

    /// Writes the block's weights as `[BLOCK_INPUTS][8]` floats.
    ///
    /// # Safety
    /// The processor has the instruction set. `p` points to a block, `out` to `BLOCK_INPUTS * 8` floats.
    unsafe fn dequantize_block<S: Isa>(p: *const u8, out: *mut f32);
}

/// A layout with integer weights: `w = q * scale + bias`, with one scale and one bias per group of columns and row.
pub(in super::super) trait QuantizedLayout: Layout {
    type Scales: BlockScales;
    type Encoding: IntEncoding;

    /// The quantized weights of one k-block, one vector per k-group.
    ///
    /// # Safety
    /// The processor has the instruction set. `p` points to a block, `k_block` is one of its k-blocks.
    unsafe fn unpack<S: Isa>(p: *const u8, k_block: usize) -> [S::U8x32; 8];
}

/// Weights that are not quantized.
pub(in super::super) struct FloatLayout<Float>(PhantomData<Float>);
pub(in super::super) struct F32;
pub(in super::super) struct F16;
pub(in super::super) struct Bf16;

macro_rules! float_layout {
    ($float:ty, $element:ty, $load:ident) => {
        impl Layout for FloatLayout<$float> {
            const BLOCK_INPUTS: usize = K_BLOCK;
            const BLOCK_BYTES: usize = K_BLOCK * LANES * size_of::<$element>();

            #[inline(always)]
            unsafe fn dequantize_block<S: Isa>(p: *const u8, out: *mut f32) {
                for i in 0..K_BLOCK {
                    // SAFETY: `i` stays within the block and within `out`.
                    unsafe { S::store(out.add(i * LANES), S::$load(p.cast::<$element>().add(i * LANES))) };
                }
            }
        }
    };
}
float_layout!(F32, f32, load);
float_layout!(F16, u16, load_f16);
float_layout!(Bf16, u16, load_bf16);

/// Quantized blocks: the scales, then the integers.
pub(in super::super) struct BlockLayout<Encoding, Scales>(PhantomData<(Encoding, Scales)>);

impl<E: IntEncoding, H: BlockScales> Layout for BlockLayout<E, H> {
    const BLOCK_INPUTS: usize = H::BLOCK_INPUTS;
    const BLOCK_BYTES: usize = H::BYTES + H::BLOCK_INPUTS / K_BLOCK * E::BYTES;

    #[inline(always)]
    unsafe fn dequantize_block<S: Isa>(p: *const u8, out: *mut f32) {
        // SAFETY: guaranteed by the caller; indices stay within the block.
        unsafe {
            for input in (0..Self::BLOCK_INPUTS).step_by(4) {
                let k_group = Self::unpack::<S>(p, input / K_BLOCK)[input % K_BLOCK / 4];
                let (scale, bias) = H::scale_bias::<S>(p, input / H::GROUP);
                for n in 0..4 {
                    let q = if E::MADDUBS_SUMS_MAX == SIGNED_WEIGHTS {
                        S::nth_byte_to_f32::<true>(k_group, n)
                    } else {
                        S::nth_byte_to_f32::<false>(k_group, n)
                    };
                    S::store(out.add((input + n) * LANES), S::fma(q, scale, bias));
                }
            }
        }
    }
}

impl<E: IntEncoding, H: BlockScales> QuantizedLayout for BlockLayout<E, H> {
    type Scales = H;
    type Encoding = E;

    #[inline(always)]
    unsafe fn unpack<S: Isa>(p: *const u8, k_block: usize) -> [S::U8x32; 8] {
        // SAFETY: guaranteed by the caller.
        unsafe { E::unpack::<S>(p.add(H::BYTES + k_block * E::BYTES)) }
    }
}

/// A layout as a value, stored in a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub(in super::super) enum LayoutKind {
    Float(FloatType),
    /// MLX's affine quantization, and ggml's Q4_1.
    Affine {
        /// 4, 6 or 8: the width of the packed integers. A file's integers may be narrower.
        bits: usize,
        /// Inputs per scale and bias: 32, 64 or 128.
        group: usize,
        /// Scales and biases are f32 rather than f16.
        f32_scales: bool,
    },
    Q4_0,
    Q5_0,
    Q5_1,
    /// Also IQ4_NL, whose codebook values are stored.
    Q8_0,
    Q2_K,
    Q4_K,
    Q5_K,
    /// Also Q3_K.
    Q6_K,
}

/// Evaluates `$body` with `$layout` as the layout type of `$kind`. `@quantized` excludes float layouts.
macro_rules! with_layout {
    (@quantized $kind:expr, $layout:ident => $body:expr) => {
        with_layout!(@arms $kind, $layout => $body, [
            LayoutKind::Float(_) => unreachable!("float weights take f32 activations"),
        ])
    };
    ($kind:expr, $layout:ident => $body:expr) => {
        with_layout!(@arms $kind, $layout => $body, [
            LayoutKind::Float(FloatType::F32) => { type $layout = FloatLayout<F32>; $body }
            LayoutKind::Float(FloatType::F16) => { type $layout = FloatLayout<F16>; $body }
            LayoutKind::Float(FloatType::Bf16) => { type $layout = FloatLayout<Bf16>; $body }
        ])
    };
    (@arms $kind:expr, $layout:ident => $body:expr, [$($float:tt)*]) => {
        match $kind {
            $($float)*
            LayoutKind::Affine { bits: 4, group: 32, f32_scales: false } => { type $layout = BlockLayout<U4, ScaleBias<32, false, 0>>; $body }
            LayoutKind::Affine { bits: 4, group: 32, f32_scales: true } => { type $layout = BlockLayout<U4, ScaleBias<32, true, 0>>; $body }
            LayoutKind::Affine { bits: 4, group: 64, f32_scales: false } => { type $layout = BlockLayout<U4, ScaleBias<64, false, 0>>; $body }
            LayoutKind::Affine { bits: 4, group: 64, f32_scales: true } => { type $layout = BlockLayout<U4, ScaleBias<64, true, 0>>; $body }
            LayoutKind::Affine { bits: 4, group: 128, f32_scales: false } => { type $layout = BlockLayout<U4, ScaleBias<128, false, 0>>; $body }
            LayoutKind::Affine { bits: 4, group: 128, f32_scales: true } => { type $layout = BlockLayout<U4, ScaleBias<128, true, 0>>; $body }
            LayoutKind::Affine { bits: 6, group: 32, f32_scales: false } => { type $layout = BlockLayout<U6, ScaleBias<32, false, 0>>; $body }
            LayoutKind::Affine { bits: 6, group: 32, f32_scales: true } => { type $layout = BlockLayout<U6, ScaleBias<32, true, 0>>; $body }
            LayoutKind::Affine { bits: 6, group: 64, f32_scales: false } => { type $layout = BlockLayout<U6, ScaleBias<64, false, 0>>; $body }
            LayoutKind::Affine { bits: 6, group: 64, f32_scales: true } => { type $layout = BlockLayout<U6, ScaleBias<64, true, 0>>; $body }
            LayoutKind::Affine { bits: 6, group: 128, f32_scales: false } => { type $layout = BlockLayout<U6, ScaleBias<128, false, 0>>; $body }
            LayoutKind::Affine { bits: 6, group: 128, f32_scales: true } => { type $layout = BlockLayout<U6, ScaleBias<128, true, 0>>; $body }
            LayoutKind::Affine { bits: 8, group: 32, f32_scales: false } => { type $layout = BlockLayout<I8, ScaleBias<32, false, -128>>; $body }
            LayoutKind::Affine { bits: 8, group: 32, f32_scales: true } => { type $layout = BlockLayout<I8, ScaleBias<32, true, -128>>; $body }
            LayoutKind::Affine { bits: 8, group: 64, f32_scales: false } => { type $layout = BlockLayout<I8, ScaleBias<64, false, -128>>; $body }
            LayoutKind::Affine { bits: 8, group: 64, f32_scales: true } => { type $layout = BlockLayout<I8, ScaleBias<64, true, -128>>; $body }
            LayoutKind::Affine { bits: 8, group: 128, f32_scales: false } => { type $layout = BlockLayout<I8, ScaleBias<128, false, -128>>; $body }
            LayoutKind::Affine { bits: 8, group: 128, f32_scales: true } => { type $layout = BlockLayout<I8, ScaleBias<128, true, -128>>; $body }
            LayoutKind::Affine { bits, group, .. } => unreachable!("packed integers of {bits} bits in groups of {group}"),
            LayoutKind::Q4_0 => { type $layout = BlockLayout<U4, ScaleOnly<8>>; $body }
            LayoutKind::Q5_0 => { type $layout = BlockLayout<U5, ScaleOnly<16>>; $body }
            LayoutKind::Q5_1 => { type $layout = BlockLayout<U5, ScaleBias<32, false, 0>>; $body }
            LayoutKind::Q8_0 => { type $layout = BlockLayout<I8, ScaleOnly<0>>; $body }
            LayoutKind::Q2_K => { type $layout = BlockLayout<U4, KQuantScaleMin<16>>; $body }
            LayoutKind::Q4_K => { type $layout = BlockLayout<U4, KQuantScaleMin<32>>; $body }
            LayoutKind::Q5_K => { type $layout = BlockLayout<U5, KQuantScaleMin<32>>; $body }
            LayoutKind::Q6_K => { type $layout = BlockLayout<U6, KQuantScale>; $body }
        }
    };
}
pub(in super::super) use with_layout;

impl LayoutKind {
    pub(in super::super) fn block_inputs(self) -> usize {
        with_layout!(self, L => L::BLOCK_INPUTS)
    }
    pub(in super::super) fn block_bytes(self) -> usize {
        with_layout!(self, L => L::BLOCK_BYTES)
    }
    /// How the activations that are multiplied with this weight are quantized. `None` for float weights.
    pub(in super::super) fn activation_quant(self) -> Option<ActivationQuant> {
        match self {
            Self::Float(_) => None,
            _ => Some(with_layout!(@quantized self, L => ActivationQuant::of::<L>())),
        }
    }
}

/// How activations are quantized to eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct ActivationQuant {
    /// Inputs that share a scale.
    pub(in super::super) scale_group: usize,
    /// Inputs whose activations are summed, to be multiplied by the weights' biases.
    pub(in super::super) sum_group: usize,
    /// The quantized integers are summed, not the dequantized activations.
    pub(in super::super) integer_sums: bool,
}

impl ActivationQuant {
    fn of<L: QuantizedLayout>() -> Self {
        let (group, k_quant) = (L::Scales::GROUP, L::Scales::K_QUANT);
        Self { scale_group: if k_quant { L::BLOCK_INPUTS } else { group }, sum_group: group, integer_sums: k_quant }
    }
}
