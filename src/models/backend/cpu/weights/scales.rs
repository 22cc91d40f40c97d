//! The scales of quantized blocks, at the head of each block: those of the block's eight rows side by side.
//!
//! The quantization formulas are those of ggml's block types and of MLX's affine quantization.

use super::super::isa::{Isa, LANES};
use crate::models::weights::Affine;
use half::f16;

/// The scales of one block of eight rows.
pub(in super::super) trait BlockScales {
    /// Inputs that share a scale: a sub-block of a K-quant.
    const GROUP: usize;
    const BLOCK_INPUTS: usize;
    /// Bytes of the scales of one block.
    const BYTES: usize;
    /// True for K-quants. A block is a super-block and a group a sub-block. The scale of a group is the sub-block's integer scale
    /// times the super-block's scale, and the same holds for the mins. Products are summed as integers over the super-block, so
    /// activations share one scale per super-block.
    const K_QUANT: bool = false;

    /// Writes the scales of row `lane` of the eight. `affine` returns the scale and bias of a group of one GGUF block.
    fn pack(scales: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine);
    /// Scale and bias of one group: `w = q * scale + bias`.
    ///
    /// # Safety
    /// The processor has the instruction set. `p` points to a block, `group` is one of its groups.
    unsafe fn scale_bias<S: Isa>(p: *const u8, group: usize) -> (S::F32x8, S::F32x8);
    /// K-quants: the integer scale and min of one sub-block.
    ///
    /// # Safety
    /// As `scale_bias`.
    unsafe fn sub_block_scales<S: Isa>(_: *const u8, _: usize) -> (S::I32x8, S::I32x8) {
        unreachable!("not a K-quant")
    }
    /// K-quants: the scale of the super-block, and the factor of its mins (negative, because mins are subtracted).
    ///
    /// # Safety
    /// As `scale_bias`.
    unsafe fn super_block_scales<S: Isa>(_: *const u8) -> (S::F32x8, S::F32x8) {
        unreachable!("not a K-quant")
    }
}

/// `w = (q - ZERO_POINT) * scale + bias`, a scale and a bias per group of `G`: MLX's affine quantization, ggml's Q4_1 and Q5_1.
/// Both are f16, or f32 if f16 cannot hold them.
///
/// `ZERO_POINT` is the stored integer that stands for the file's 0. It is -128 for 8-bit integers, which are stored as signed
/// bytes, and else 0.
pub(in super::super) struct ScaleBias<const G: usize, const F32_SCALES: bool, const ZERO_POINT: i32>;

impl<const G: usize, const F32_SCALES: bool, const ZERO_POINT: i32> BlockScales for ScaleBias<G, F32_SCALES, ZERO_POINT> {
    const GROUP: usize = G;
    const BLOCK_INPUTS: usize = G;
    const BYTES: usize = LANES * 2 * if F32_SCALES { 4 } else { 2 };

    #[inline(always)]
    fn pack(scales: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine) {
        assert!(!F32_SCALES, "the scales of a GGUF block are f16; `pack_affine_scales` writes MLX's");
        // The group's integers are 1: its scale is `d` and its bias `e`.
        let Affine { d, e, .. } = affine(0);
        write_f16(scales, lane, [d, e]);
    }
    #[inline(always)]
    unsafe fn scale_bias<S: Isa>(p: *const u8, _: usize) -> (S::F32x8, S::F32x8) {
        // SAFETY: a block has one group; it begins with eight scales, then eight biases.
        unsafe {
            let (scale, bias) = if F32_SCALES {
                (S::load(p.cast()), S::load(p.cast::<f32>().add(LANES)))
            } else {
                (S::load_f16(p.cast()), S::load_f16(p.cast::<u16>().add(LANES)))
            };
            (scale, if ZERO_POINT == 0 { bias } else { S::fma(scale, S::splat(-ZERO_POINT as f32), bias) })
        }
    }
}

/// `w = (q - ZERO_POINT) * scale`, an f16 scale per 32: ggml's Q4_0, Q5_0 and Q8_0. `ZERO_POINT` is the stored integer that
/// stands for the weight 0.
pub(in super::super) struct ScaleOnly<const ZERO_POINT: i32>;

impl<const ZERO_POINT: i32> BlockScales for ScaleOnly<ZERO_POINT> {
    const GROUP: usize = 32;
    const BLOCK_INPUTS: usize = 32;
    const BYTES: usize = LANES * 2;

    #[inline(always)]
    fn pack(scales: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine) {
        write_f16(scales, lane, [affine(0).d]);
    }
    #[inline(always)]
    unsafe fn scale_bias<S: Isa>(p: *const u8, _: usize) -> (S::F32x8, S::F32x8) {
        // SAFETY: a block has one group; it begins with eight scales.
        unsafe {
            let scale = S::load_f16(p.cast());
            (scale, S::mul(scale, S::splat(-ZERO_POINT as f32)))
        }
    }
}

/// Super-blocks of 256 with sub-blocks of `G`: `w = q * (d * scale) - dmin * min`. `d` and `dmin` are f16, `scale` and `min`
/// bytes: ggml's Q2_K, Q4_K and Q5_K.
pub(in super::super) struct KQuantScaleMin<const G: usize>;

impl<const G: usize> BlockScales for KQuantScaleMin<G> {
    const GROUP: usize = G;
    const BLOCK_INPUTS: usize = 256;
    const BYTES: usize = LANES * 4 + 256 / G * LANES * 2;
    const K_QUANT: bool = true;

    #[inline(always)]
    fn pack(scales: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine) {
        let Affine { d, e, .. } = affine(0);
        write_f16(scales, lane, [d, e]);
        for (group, sub_block) in scales[LANES * 4..].chunks_exact_mut(LANES * 2).enumerate() {
            let Affine { scale, bias, .. } = affine(group);
            (sub_block[lane], sub_block[LANES + lane]) = (scale as u8, -bias as u8);
        }
    }
    #[inline(always)]
    unsafe fn scale_bias<S: Isa>(p: *const u8, group: usize) -> (S::F32x8, S::F32x8) {
        // SAFETY: guaranteed by the caller.
        unsafe { k_quant_scale_bias::<S, Self>(p, group) }
    }
    #[inline(always)]
    unsafe fn sub_block_scales<S: Isa>(p: *const u8, group: usize) -> (S::I32x8, S::I32x8) {
        // SAFETY: after the f16 numbers, each group has eight scales, then eight mins.
        unsafe {
            let sub_block = p.add(LANES * 4 + group * LANES * 2);
            (S::load_u8_as_i32(sub_block), S::load_u8_as_i32(sub_block.add(LANES)))
        }
    }
    #[inline(always)]
    unsafe fn super_block_scales<S: Isa>(p: *const u8) -> (S::F32x8, S::F32x8) {
        // SAFETY: a block begins with the f16 numbers.
        unsafe { (S::load_f16(p.cast()), S::sub(S::zero(), S::load_f16(p.cast::<u16>().add(LANES)))) }
    }
}

/// Super-blocks of 256 with sub-blocks of 16: `w = (q - 32) * (d * scale)`. `d` is f16, `scale` a signed byte: ggml's Q6_K, and
/// its Q3_K, whose integers (-4 to 3) are stored plus 32 to share Q6_K's encoding.
pub(in super::super) struct KQuantScale;

impl BlockScales for KQuantScale {
    const GROUP: usize = 16;
    const BLOCK_INPUTS: usize = 256;
    const BYTES: usize = 160; // 144, rounded up to whole vectors
    const K_QUANT: bool = true;

    #[inline(always)]
    fn pack(scales: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine) {
        write_f16(scales, lane, [affine(0).d]);
        for (group, sub_block) in scales[LANES * 2..].chunks_exact_mut(LANES).enumerate().take(16) {
            sub_block[lane] = affine(group).scale as u8;
        }
    }
    #[inline(always)]
    unsafe fn scale_bias<S: Isa>(p: *const u8, group: usize) -> (S::F32x8, S::F32x8) {
        // SAFETY: guaranteed by the caller.
        unsafe { k_quant_scale_bias::<S, Self>(p, group) }
    }
    /// The scales are also the mins, because `(q - 32) * scale = q * scale - 32 * scale`.
    #[inline(always)]
    unsafe fn sub_block_scales<S: Isa>(p: *const u8, group: usize) -> (S::I32x8, S::I32x8) {
        // SAFETY: after the f16 numbers, each group has eight scales.
        unsafe {
            let scales = S::load_i8_as_i32(p.add(LANES * 2 + group * LANES));
            (scales, scales)
        }
    }
    #[inline(always)]
    unsafe fn super_block_scales<S: Isa>(p: *const u8) -> (S::F32x8, S::F32x8) {
        // SAFETY: a block begins with the f16 numbers.
        unsafe {
            let scale = S::load_f16(p.cast());
            (scale, S::mul(scale, S::splat(-32.0)))
        }
    }
}

/// Writes one row's f16 numbers at the head of a block: `[number][row]`.
fn write_f16<const N: usize>(scales: &mut [u8], lane: usize, values: [f16; N]) {
    for (scales, value) in scales.chunks_exact_mut(LANES * 2).zip(values) {
        scales[lane * 2..][..2].copy_from_slice(&value.to_le_bytes());
    }
}

/// The scale and bias of one sub-block: exact, because an f16 times a byte fits f32.
///
/// # Safety
/// As `BlockScales::scale_bias`.
#[inline(always)]
unsafe fn k_quant_scale_bias<S: Isa, H: BlockScales>(p: *const u8, group: usize) -> (S::F32x8, S::F32x8) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let ((scale, min), (d, dmin)) = (H::sub_block_scales::<S>(p, group), H::super_block_scales::<S>(p));
        (S::mul(d, S::to_f32(scale)), S::mul(dmin, S::to_f32(min)))
    }
}
