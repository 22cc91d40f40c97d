//! Eight lanes: what a kernel needs of an instruction set.
//!
//! Kernels are written once, over this trait, and compiled once per instruction set inside a function that
//! enables it (see `kernels.rs`), so that every method here inlines. The scalar implementation does the same
//! operations in the same order and gives the same bits: it is the reference that the others are tested by.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::{AVX_VNNI, AVX512_VNNI, Avx2, MADDUBS};
#[cfg(target_arch = "aarch64")]
pub(super) use neon::{DOTPROD, I8MM, NEON, Neon};
pub(super) use scalar::Scalar;

/// Lanes of `F` and `I`: the rows of a panel.
pub(super) const LANES: usize = 8;
/// Inputs of one k_block: what eight `B` vectors hold for eight rows.
pub(super) const K_BLOCK: usize = 32;

/// # Safety
/// Of every method: the processor has the instruction set, and pointers are valid for the lanes they reach
/// (eight f32, eight 16-bit numbers, 32 bytes); none needs alignment.
pub(super) trait Isa {
    /// Eight f32.
    type F: Copy;
    /// Eight i32.
    type I: Copy;
    /// 32 bytes: four inputs of eight rows.
    type B: Copy;

    unsafe fn zero() -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Eight bytes as whole numbers.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    unsafe fn load_i8(p: *const u8) -> Self::I;
    /// Rounds to nearest even.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    unsafe fn add(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn sub(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn mul(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn div(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn max(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn abs(x: Self::F) -> Self::F;
    /// `x * y + z`, rounded once.
    unsafe fn fma(x: Self::F, y: Self::F, z: Self::F) -> Self::F;
    /// Lane by lane `if x < y { a } else { b }`.
    unsafe fn select_less(x: Self::F, y: Self::F, a: Self::F, b: Self::F) -> Self::F;
    /// Rounds to the nearest whole number, even on ties.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `2^x` of whole numbers in -126..=127.
    unsafe fn exp2_int(x: Self::F) -> Self::F;
    unsafe fn to_f32(x: Self::I) -> Self::F;

    unsafe fn add_i32(x: Self::I, y: Self::I) -> Self::I;
    unsafe fn zero_i32() -> Self::I;
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    /// The low and the high four bits of every byte.
    unsafe fn nibbles(x: Self::B) -> (Self::B, Self::B);
    /// Byte `which` (0..4) of every row's four, as a whole number: unsigned, or signed.
    unsafe fn byte_to_f32<const SIGNED: bool>(x: Self::B, which: usize) -> Self::F;
    /// `x` and, in the bits of MASK (of every byte), `planes` shifted left by SHIFT, right if negative.
    unsafe fn or_shifted_bits<const SHIFT: i32, const MASK: i8>(x: Self::B, planes: Self::B) -> Self::B;
    /// Of M rows of activations in -127..=127, K_BLOCK bytes apart, and every row of weights: the dot product of four or eight
    /// vectors with four activations each.
    /// MADDUBS_PAIRS: how many sums of two products sixteen bits can add up; 0: bytes are signed, and any.
    unsafe fn dots<const MADDUBS_PAIRS: usize, const M: usize>(w: &[Self::B], x: *const i8) -> [Self::I; M];
    /// `sums + dots(w, x) * factor` of unsigned bytes; sub_block_scales are within -128..=127 or 0..=63.
    unsafe fn add_scaled_dots<const MADDUBS_PAIRS: usize, const M: usize>(
        sums: [Self::I; M],
        w: &[Self::B],
        x: *const i8,
        factor: Self::I,
    ) -> [Self::I; M];
    /// `sums + x[0] * a + x[1] * b`, of numbers that fit sixteen bits.
    unsafe fn madd2_i16(sums: Self::I, x: *const i16, a: Self::I, b: Self::I) -> Self::I;
    /// Brings a cache line near that is read soon; any address will do.
    unsafe fn prefetch(p: *const u8);
    /// Eight f32 as whole numbers (nearest even) in eight bytes; they are within -127..=127. Returns them.
    unsafe fn store_i8(p: *mut i8, x: Self::F) -> Self::I;
    unsafe fn add_lanes_i32(x: Self::I) -> i32;
    /// The max_lane of eight lanes.
    unsafe fn max_lane(x: Self::F) -> f32;
}

/// The sum of eight lanes in one fixed order.
#[inline(always)]
pub(super) unsafe fn add_lanes<S: Isa>(x: S::F) -> f32 {
    let mut l = [0f32; LANES];
    // SAFETY: eight lanes are written to eight floats.
    unsafe { S::store(l.as_mut_ptr(), x) };
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

/// `e^x` for `x <= 0`, within about 2 k_blocks in the last place; 0 below -87, so no denormals.
/// Cody and Waite's reduction with the Taylor polynomial of degree 7.
#[inline(always)]
pub(super) unsafe fn exp<S: Isa>(x: S::F) -> S::F {
    // SAFETY: registers only.
    unsafe {
        let low = S::splat(-87.0);
        let clamped = S::max(x, low);
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 5040.0);
        p = S::fma(p, r, S::splat(1.0 / 720.0));
        p = S::fma(p, r, S::splat(1.0 / 120.0));
        p = S::fma(p, r, S::splat(1.0 / 24.0));
        p = S::fma(p, r, S::splat(1.0 / 6.0));
        p = S::fma(p, r, S::splat(0.5));
        p = S::fma(p, r, S::splat(1.0));
        p = S::fma(p, r, S::splat(1.0));
        S::select_less(x, low, S::zero(), S::mul(p, S::exp2_int(n)))
    }
}
