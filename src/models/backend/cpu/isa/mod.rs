//! The operations that kernels use of an instruction set, on vectors of eight lanes.
//!
//! Kernels are written once, over this trait, and compiled once per instruction set inside a function that enables it (see
//! `kernels/mod.rs`), so that every method is inlined. The scalar implementation does the same operations in the same order and
//! gives the same bits. The others are tested against it.

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

/// Lanes of `F32x8` and `I32x8`: one for each of the eight weight rows of a row panel (see `weights/layout.rs`).
pub(super) const LANES: usize = 8;
/// Columns of a k-block, a tile of 8 rows x 32 columns of weights (k is the dimension that a matrix product sums over). Eight
/// `U8x32` vectors hold it, one for each k-group of four columns.
pub(super) const K_BLOCK: usize = 32;
/// The `MADDUBS_SUMS_MAX` of signed weights: AVX2's `maddubs` takes unsigned ones only.
pub(super) const SIGNED_WEIGHTS: usize = 0;

/// Vectors and the operations on them, lane by lane unless a method says otherwise.
///
/// # Safety
/// Of every method: the processor has the instruction set. Pointers are valid for all lanes (eight f32, eight 16-bit numbers,
/// eight or 32 bytes), at any alignment.
pub(super) trait Isa {
    /// Eight f32.
    type F32x8: Copy;
    /// Eight i32.
    type I32x8: Copy;
    /// 32 bytes, signed or unsigned: four for each of eight rows, such as the four columns of a k-group.
    type U8x32: Copy;

    unsafe fn zero() -> Self::F32x8;
    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self::F32x8;
    unsafe fn load(p: *const f32) -> Self::F32x8;
    unsafe fn store(p: *mut f32, x: Self::F32x8);
    unsafe fn load_f16(p: *const u16) -> Self::F32x8;
    unsafe fn load_bf16(p: *const u16) -> Self::F32x8;
    /// Loads eight unsigned bytes and widens each to i32.
    unsafe fn load_u8_as_i32(p: *const u8) -> Self::I32x8;
    /// Loads eight signed bytes and widens each to i32.
    unsafe fn load_i8_as_i32(p: *const u8) -> Self::I32x8;
    /// Converts to f16, rounding to nearest even, and stores.
    unsafe fn store_f16(p: *mut u16, x: Self::F32x8);
    unsafe fn add(x: Self::F32x8, y: Self::F32x8) -> Self::F32x8;
    unsafe fn sub(x: Self::F32x8, y: Self::F32x8) -> Self::F32x8;
    unsafe fn mul(x: Self::F32x8, y: Self::F32x8) -> Self::F32x8;
    unsafe fn div(x: Self::F32x8, y: Self::F32x8) -> Self::F32x8;
    /// `if x > y { x } else { y }`, so `y` if either is NaN.
    unsafe fn max(x: Self::F32x8, y: Self::F32x8) -> Self::F32x8;
    unsafe fn abs(x: Self::F32x8) -> Self::F32x8;
    /// `x * y + z`, rounded once.
    unsafe fn fma(x: Self::F32x8, y: Self::F32x8, z: Self::F32x8) -> Self::F32x8;
    /// `if x < y { a } else { b }`.
    unsafe fn select_less(x: Self::F32x8, y: Self::F32x8, a: Self::F32x8, b: Self::F32x8) -> Self::F32x8;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(x: Self::F32x8) -> Self::F32x8;
    /// `2^x`, for lanes whose values are integers in -126..=127.
    unsafe fn exp2_of_integral(x: Self::F32x8) -> Self::F32x8;
    unsafe fn to_f32(x: Self::I32x8) -> Self::F32x8;

    unsafe fn add_i32(x: Self::I32x8, y: Self::I32x8) -> Self::I32x8;
    unsafe fn zero_i32() -> Self::I32x8;
    unsafe fn load_bytes(p: *const u8) -> Self::U8x32;
    /// The low four bits of every byte, and the high four bits of every byte shifted down.
    unsafe fn nibbles(x: Self::U8x32) -> (Self::U8x32, Self::U8x32);
    /// Lane `i` is byte `4 * i + n` of `x`, as f32: the weight of row `i` in column `n` (0..4) of a k-group.
    unsafe fn nth_byte_to_f32<const SIGNED: bool>(x: Self::U8x32, n: usize) -> Self::F32x8;
    /// In each byte `x | (bits << SHIFT & MASK)`; a negative SHIFT shifts right.
    unsafe fn or_shifted_bits<const SHIFT: i32, const MASK: i8>(x: Self::U8x32, bits: Self::U8x32) -> Self::U8x32;
    /// Dot products of eight weight rows with M rows of activations, over the columns of a k-block or of half of one. Result `r`
    /// has activation row `r`; its lane `i` has weight row `i`.
    ///
    /// `w` has four or eight k-groups. `x` has four activations for each k-group, in -127..=127; its rows are `K_BLOCK` bytes
    /// apart. MADDUBS_SUMS_MAX is that of `IntEncoding`.
    unsafe fn dots<const MADDUBS_SUMS_MAX: usize, const M: usize>(w: &[Self::U8x32], x: *const i8) -> [Self::I32x8; M];
    /// `sums + dots(w, x) * factor`, for unsigned weights. Lanes of `factor` are in -128..=127.
    unsafe fn add_scaled_dots<const MADDUBS_SUMS_MAX: usize, const M: usize>(
        sums: [Self::I32x8; M],
        w: &[Self::U8x32],
        x: *const i8,
        factor: Self::I32x8,
    ) -> [Self::I32x8; M];
    /// `sums + x[0] * a + x[1] * b`: two multiply-adds (x86's `pmaddwd`). The lanes of `a` and `b` fit in i16.
    unsafe fn madd2_i16(sums: Self::I32x8, x: *const i16, a: Self::I32x8, b: Self::I32x8) -> Self::I32x8;
    /// Prefetches a cache line into the first-level cache; any address is allowed.
    unsafe fn prefetch(p: *const u8);
    /// Rounds to the nearest integers, ties to even, stores them as eight bytes and returns them. They are in -127..=127.
    unsafe fn round_and_store_i8(p: *mut i8, x: Self::F32x8) -> Self::I32x8;
    /// The sum of the eight lanes.
    unsafe fn reduce_sum_i32(x: Self::I32x8) -> i32;
    /// The maximum of the eight lanes.
    unsafe fn reduce_max(x: Self::F32x8) -> f32;
}

/// The sum of the eight lanes, in one fixed order.
///
/// # Safety
/// The processor has the instruction set.
#[inline(always)]
pub(super) unsafe fn reduce_sum<S: Isa>(x: S::F32x8) -> f32 {
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
pub(super) unsafe fn exp<S: Isa>(x: S::F32x8) -> S::F32x8 {
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
        S::select_less(x, low, S::zero(), S::mul(p, S::exp2_of_integral(n)))
    }
}
