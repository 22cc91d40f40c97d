//! The scales of quantized blocks: at the head of each, for eight rows side by side.

use super::isa::{Isa, LANES};
use crate::models::weights::Affine;
use half::f16;

/// The scales of a block of eight rows.
pub(super) trait Header {
    const GROUP: usize;
    const BLOCK: usize;
    const BYTES: usize;
    /// Scales are a factor per group times one scale of the block, and so are biases: then integers are summed over the
    /// whole block, and its activations have one scale.
    const TWO_LEVELS: bool = false;

    /// Writes what a header has of row `lane` of the eight, from a GGUF block's groups.
    fn pack(header: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine);
    /// # Safety
    /// `p` points to a header; the processor has the instruction set.
    unsafe fn scales<S: Isa>(p: *const u8, group: usize) -> (S::F, S::F);
    /// Of two levels: the group's factors of scale and bias, and the block's scale and bias.
    ///
    /// # Safety
    /// As `scales`.
    unsafe fn factors<S: Isa>(_: *const u8, _: usize) -> (S::I, S::I) {
        unreachable!("one level")
    }
    /// # Safety
    /// As `scales`.
    unsafe fn tops<S: Isa>(_: *const u8) -> (S::F, S::F) {
        unreachable!("one level")
    }
}

/// A scale and a bias for each group of G: f16, or f32 where f16 can't hold them. The integers are stored LESS smaller
/// than the bias is meant for.
pub(super) struct Pair<const G: usize, const WIDE: bool, const LESS: i32>;

impl<const G: usize, const WIDE: bool, const LESS: i32> Header for Pair<G, WIDE, LESS> {
    const GROUP: usize = G;
    const BLOCK: usize = G;
    const BYTES: usize = LANES * 2 * if WIDE { 4 } else { 2 };

    #[inline(always)]
    fn pack(header: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine) {
        let Affine { d, e, .. } = affine(0);
        put_halves(header, lane, [d, e]);
    }
    #[inline(always)]
    unsafe fn scales<S: Isa>(p: *const u8, _: usize) -> (S::F, S::F) {
        // SAFETY: a block has one group; its header has eight scales, then eight biases.
        unsafe {
            let (scale, bias) = if WIDE {
                (S::load(p.cast()), S::load(p.cast::<f32>().add(LANES)))
            } else {
                (S::load_f16(p.cast()), S::load_f16(p.cast::<u16>().add(LANES)))
            };
            (scale, if LESS == 0 { bias } else { S::fma(scale, S::splat(LESS as f32), bias) })
        }
    }
}

/// An f16 scale for each group of 32, of integers whose zero is ZERO.
pub(super) struct Scale<const ZERO: i32>;

impl<const ZERO: i32> Header for Scale<ZERO> {
    const GROUP: usize = 32;
    const BLOCK: usize = 32;
    const BYTES: usize = LANES * 2;

    #[inline(always)]
    fn pack(header: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine) {
        put_halves(header, lane, [affine(0).d]);
    }
    #[inline(always)]
    unsafe fn scales<S: Isa>(p: *const u8, _: usize) -> (S::F, S::F) {
        // SAFETY: a block has one group; its header is eight scales.
        unsafe {
            let scale = S::load_f16(p.cast());
            (scale, S::mul(scale, S::splat(-ZERO as f32)))
        }
    }
}

/// Two levels: eight f16 scales and eight f16 minima for 256 inputs; for each group of G a factor of each in a byte.
pub(super) struct Factors<const G: usize>;

impl<const G: usize> Header for Factors<G> {
    const GROUP: usize = G;
    const BLOCK: usize = 256;
    const BYTES: usize = LANES * 4 + 256 / G * LANES * 2;
    const TWO_LEVELS: bool = true;

    #[inline(always)]
    fn pack(header: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine) {
        let Affine { d, e, .. } = affine(0);
        put_halves(header, lane, [d, e]);
        for (group, factors) in header[LANES * 4..].chunks_exact_mut(LANES * 2).enumerate() {
            let Affine { scale, bias, .. } = affine(group);
            (factors[lane], factors[LANES + lane]) = (scale as u8, -bias as u8);
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Isa>(p: *const u8, group: usize) -> (S::F, S::F) {
        // SAFETY: the trait's contract.
        unsafe { multiplied::<S, Self>(p, group) }
    }
    #[inline(always)]
    unsafe fn factors<S: Isa>(p: *const u8, group: usize) -> (S::I, S::I) {
        // SAFETY: sixteen factors a group behind the f16s.
        unsafe {
            let factors = p.add(LANES * 4 + group * LANES * 2);
            (S::load_u8(factors), S::load_u8(factors.add(LANES)))
        }
    }
    #[inline(always)]
    unsafe fn tops<S: Isa>(p: *const u8) -> (S::F, S::F) {
        // SAFETY: a header begins with the f16s.
        unsafe { (S::load_f16(p.cast()), S::sub(S::zero(), S::load_f16(p.cast::<u16>().add(LANES)))) }
    }
}

/// Two levels without minima: eight f16 scales for 256 inputs, signed factors in a byte for each group of 16, of
/// integers whose zero is 32.
pub(super) struct SignedFactors;

impl Header for SignedFactors {
    const GROUP: usize = 16;
    const BLOCK: usize = 256;
    const BYTES: usize = 160; // 144, and up to whole vectors
    const TWO_LEVELS: bool = true;

    #[inline(always)]
    fn pack(header: &mut [u8], lane: usize, affine: impl Fn(usize) -> Affine) {
        put_halves(header, lane, [affine(0).d]);
        for (group, factors) in header[LANES * 2..].chunks_exact_mut(LANES).enumerate().take(16) {
            factors[lane] = affine(group).scale as u8;
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Isa>(p: *const u8, group: usize) -> (S::F, S::F) {
        // SAFETY: the trait's contract.
        unsafe { multiplied::<S, Self>(p, group) }
    }
    #[inline(always)]
    unsafe fn factors<S: Isa>(p: *const u8, group: usize) -> (S::I, S::I) {
        // SAFETY: eight factors a group behind the f16s.
        unsafe {
            let factors = S::load_i8(p.add(LANES * 2 + group * LANES));
            (factors, factors)
        }
    }
    #[inline(always)]
    unsafe fn tops<S: Isa>(p: *const u8) -> (S::F, S::F) {
        // SAFETY: a header begins with the f16s.
        unsafe {
            let scale = S::load_f16(p.cast());
            (scale, S::mul(scale, S::splat(-32.0)))
        }
    }
}

/// The f16s that a header begins with: eight rows of each.
fn put_halves<const N: usize>(header: &mut [u8], lane: usize, values: [f16; N]) {
    for (header, value) in header.chunks_exact_mut(LANES * 2).zip(values) {
        header[lane * 2..][..2].copy_from_slice(&value.to_le_bytes());
    }
}

/// A group's scale and bias of two levels: exact, an f16 times a byte.
#[inline(always)]
unsafe fn multiplied<S: Isa, H: Header>(p: *const u8, group: usize) -> (S::F, S::F) {
    // SAFETY: the caller's.
    unsafe {
        let ((scale, bias), (top_scale, top_bias)) = (H::factors::<S>(p, group), H::tops::<S>(p));
        (S::mul(top_scale, S::to_f32(scale)), S::mul(top_bias, S::to_f32(bias)))
    }
}
