//! The vector operations that kernels need of an instruction set, on vectors of eight lanes.
//!
//! Kernels are written once, over this trait, and compiled once per instruction set inside a function that enables it (see
//! `kernels/mod.rs`), so that every method is inlined. The scalar implementation does the same operations in the same order and
//! gives the same bits: it is the reference that the others are tested against.

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

/// Lanes of `F` and `I`: the rows of a row panel.
pub(super) const LANES: usize = 8;
/// Inputs of one k-block: eight `B` vectors hold them for eight rows.
pub(super) const K_BLOCK: usize = 32;

/// # Safety
/// Of every method: the processor has the instruction set. Pointers are valid for all lanes (eight f32, eight 16-bit numbers,
/// eight or 32 bytes), at any alignment.
pub(super) trait Isa {
    /// Eight f32.
    type F: Copy;
    /// Eight i32.
    type I: Copy;
    /// 32 bytes: a k-group, four inputs of eight rows.
    type B: Copy;

    unsafe fn zero() -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Eight unsigned bytes, as i32.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    /// Eight signed bytes, as i32.
    unsafe fn load_i8(p: *const u8) -> Self::I;
    /// Rounds to nearest even.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    unsafe fn add(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn sub(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn mul(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn div(x: Self::F, y: Self::F) -> Self::F;
    /// In each lane `if x > y { x } else { y }`, so `y` if either is NaN.
    unsafe fn max(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn abs(x: Self::F) -> Self::F;
    /// `x * y + z`, rounded once.
    unsafe fn fma(x: Self::F, y: Self::F, z: Self::F) -> Self::F;
    /// In each lane `if x < y { a } else { b }`.
    unsafe fn select_less(x: Self::F, y: Self::F, a: Self::F, b: Self::F) -> Self::F;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `2^x` of integers in -126..=127.
    unsafe fn exp2_int(x: Self::F) -> Self::F;
    unsafe fn to_f32(x: Self::I) -> Self::F;

    unsafe fn add_i32(x: Self::I, y: Self::I) -> Self::I;
    unsafe fn zero_i32() -> Self::I;
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    /// The low and the high four bits of every byte.
    unsafe fn nibbles(x: Self::B) -> (Self::B, Self::B);
    /// In each lane the byte with index `byte` (0..4) of a row's four, unsigned or signed.
    unsafe fn byte_to_f32<const SIGNED: bool>(x: Self::B, byte: usize) -> Self::F;
    /// In each byte `x | (planes << SHIFT & MASK)`; a negative SHIFT shifts right.
    unsafe fn or_shifted_bits<const SHIFT: i32, const MASK: i8>(x: Self::B, planes: Self::B) -> Self::B;
    /// Dot products of a k-block, or half of one, with M rows of activations: `w` has four or eight k-groups, and each k-group is
    /// multiplied with four activations. Activations are in -127..=127, rows `K_BLOCK` bytes apart.
    ///
    /// MADDUBS_PAIRS: see `PackedInts`. 0: weights are signed bytes.
    unsafe fn dots<const MADDUBS_PAIRS: usize, const M: usize>(w: &[Self::B], x: *const i8) -> [Self::I; M];
    /// `sums + dots(w, x) * factor`, for unsigned weights. Factors are within -128..=127.
    unsafe fn add_scaled_dots<const MADDUBS_PAIRS: usize, const M: usize>(
        sums: [Self::I; M],
        w: &[Self::B],
        x: *const i8,
        factor: Self::I,
    ) -> [Self::I; M];
    /// `sums + x[0] * a + x[1] * b`, where `a` and `b` fit 16 bits.
    unsafe fn madd2_i16(sums: Self::I, x: *const i16, a: Self::I, b: Self::I) -> Self::I;
    /// Prefetches a cache line into the first-level cache; any address is allowed.
    unsafe fn prefetch(p: *const u8);
    /// Rounds to the nearest integers, ties to even, and stores them as bytes; they are within -127..=127. Returns them.
    unsafe fn store_i8(p: *mut i8, x: Self::F) -> Self::I;
    /// The sum of eight lanes.
    unsafe fn add_lanes_i32(x: Self::I) -> i32;
    /// The maximum of eight lanes.
    unsafe fn max_lane(x: Self::F) -> f32;
}

/// The sum of eight lanes, in one fixed order.
///
/// # Safety
/// The processor has the instruction set.
#[inline(always)]
pub(super) unsafe fn add_lanes<S: Isa>(x: S::F) -> f32 {
    let mut l = [0f32; LANES];
    // SAFETY: eight lanes are written to eight floats.
    unsafe { S::store(l.as_mut_ptr(), x) };
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

/// `e^x` for `x <= 0`, within about 2 ulp; 0 below -87, so that no result is denormal.
///
/// Cody and Waite's range reduction, then the Taylor polynomial of degree 7.
///
/// # Safety
/// The processor has the instruction set.
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
