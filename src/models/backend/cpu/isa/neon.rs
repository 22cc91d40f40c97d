//! NEON, which every aarch64 processor has. With dotprod (Apple since M1, Cortex-A55 and A75, Graviton2), one instruction
//! computes a dot product instead of four. With i8mm (Apple since M2, Cortex-A510 and A710, Graviton3), one instruction
//! multiplies two rows of weights with two rows of activations, eight inputs each.
//!
//! Weights of at most six bits are the same bytes signed and unsigned, so signed products serve every layout. Instructions whose
//! intrinsics are missing in the oldest supported Rust are written as inline assembly.

use super::{Isa, K_BLOCK};
use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;

/// `DOT` selects the instructions that multiply bytes: one of the three constants below. Each includes those before it.
#[derive(Clone, Copy)]
pub(in super::super) struct Neon<const DOT: u8>;

pub(in super::super) const NEON: u8 = 0;
pub(in super::super) const DOTPROD: u8 = 1;
pub(in super::super) const I8MM: u8 = 2;

type F32x8 = [float32x4_t; 2];
type I32x8 = [int32x4_t; 2];
type U8x32 = [uint8x16_t; 2];

// SAFETY of every block: the caller upholds `Isa`'s contract: the processor has the instructions that `DOT` names; pointers are
// valid for what is read or written.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl<const DOT: u8> Isa for Neon<DOT> {
    type F32x8 = F32x8;
    type I32x8 = I32x8;
    type U8x32 = U8x32;

    #[inline(always)]
    unsafe fn zero() -> F32x8 {
        unsafe { [vdupq_n_f32(0.0); 2] }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> F32x8 {
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F32x8 {
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, [a, b]: F32x8) {
        unsafe {
            vst1q_f32(p, a);
            vst1q_f32(p.add(4), b);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> F32x8 {
        unsafe { [f16_to_f32(vld1_u16(p)), f16_to_f32(vld1_u16(p.add(4)))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F32x8 {
        unsafe { widen(vld1q_u16(p)).map(|x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(x))) }
    }
    #[inline(always)]
    unsafe fn load_u8_as_i32(p: *const u8) -> I32x8 {
        unsafe { widen(vmovl_u8(vld1_u8(p))).map(|x| vreinterpretq_s32_u32(x)) }
    }
    #[inline(always)]
    unsafe fn load_i8_as_i32(p: *const u8) -> I32x8 {
        unsafe {
            let x = vmovl_s8(vld1_s8(p.cast()));
            [vmovl_s16(vget_low_s16(x)), vmovl_high_s16(x)]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, [a, b]: F32x8) {
        unsafe {
            vst1_u16(p, f32_to_f16(a));
            vst1_u16(p.add(4), f32_to_f16(b));
        }
    }
    #[inline(always)]
    unsafe fn add(x: F32x8, y: F32x8) -> F32x8 {
        unsafe { from_fn(|i| vaddq_f32(x[i], y[i])) }
    }
    #[inline(always)]
    unsafe fn sub(x: F32x8, y: F32x8) -> F32x8 {
        unsafe { from_fn(|i| vsubq_f32(x[i], y[i])) }
    }
    #[inline(always)]
    unsafe fn mul(x: F32x8, y: F32x8) -> F32x8 {
        unsafe { from_fn(|i| vmulq_f32(x[i], y[i])) }
    }
    #[inline(always)]
    unsafe fn div(x: F32x8, y: F32x8) -> F32x8 {
        unsafe { from_fn(|i| vdivq_f32(x[i], y[i])) }
    }
    #[inline(always)]
    unsafe fn max(x: F32x8, y: F32x8) -> F32x8 {
        // Not fmax: as the reference, this gives the second operand unless the first is larger, also for zeros and NaN.
        unsafe { from_fn(|i| vbslq_f32(vcgtq_f32(x[i], y[i]), x[i], y[i])) }
    }
    #[inline(always)]
    unsafe fn abs(x: F32x8) -> F32x8 {
        unsafe { x.map(|x| vabsq_f32(x)) }
    }
    #[inline(always)]
    unsafe fn fma(x: F32x8, y: F32x8, z: F32x8) -> F32x8 {
        unsafe { from_fn(|i| vfmaq_f32(z[i], x[i], y[i])) }
    }
    #[inline(always)]
    unsafe fn select_less(x: F32x8, y: F32x8, a: F32x8, b: F32x8) -> F32x8 {
        unsafe { from_fn(|i| vbslq_f32(vcltq_f32(x[i], y[i]), a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn round(x: F32x8) -> F32x8 {
        unsafe { x.map(|x| vrndnq_f32(x)) }
    }
    #[inline(always)]
    unsafe fn exp2_of_integral(x: F32x8) -> F32x8 {
        unsafe { x.map(|x| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(x), vdupq_n_s32(127))))) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: I32x8) -> F32x8 {
        unsafe { x.map(|x| vcvtq_f32_s32(x)) }
    }

    #[inline(always)]
    unsafe fn add_i32(x: I32x8, y: I32x8) -> I32x8 {
        unsafe { from_fn(|i| vaddq_s32(x[i], y[i])) }
    }
    #[inline(always)]
    unsafe fn zero_i32() -> I32x8 {
        unsafe { [vdupq_n_s32(0); 2] }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> U8x32 {
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16))] }
    }
    #[inline(always)]
    unsafe fn nibbles(x: U8x32) -> (U8x32, U8x32) {
        unsafe { (x.map(|x| vandq_u8(x, vdupq_n_u8(15))), x.map(|x| vshrq_n_u8::<4>(x))) }
    }
    #[inline(always)]
    unsafe fn nth_byte_to_f32<const SIGNED: bool>(x: U8x32, n: usize) -> F32x8 {
        unsafe {
            // Shifts the byte to the top of its lane and down again, with or without sign extension.
            let left = vdupq_n_s32(24 - 8 * n as i32);
            x.map(|x| {
                if SIGNED {
                    vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_s32(vreinterpretq_s32_u8(x), left)))
                } else {
                    vcvtq_f32_u32(vshrq_n_u32::<24>(vshlq_u32(vreinterpretq_u32_u8(x), left)))
                }
            })
        }
    }
    #[inline(always)]
    unsafe fn or_shifted_bits<const SHIFT: i32, const MASK: i8>(x: U8x32, bits: U8x32) -> U8x32 {
        // `vshlq_u8` shifts right by negative counts.
        unsafe { from_fn(|i| vorrq_u8(x[i], vandq_u8(vshlq_u8(bits[i], vdupq_n_s8(SHIFT as i8)), vdupq_n_u8(MASK as u8)))) }
    }
    #[inline(always)]
    unsafe fn dots<const MADDUBS_SUMS_MAX: usize, const M: usize>(w: &[U8x32], x: *const i8) -> [I32x8; M] {
        unsafe {
            let mut dots = [Self::zero_i32(); M];
            if DOT == I8MM && M.is_multiple_of(2) {
                for (pair, dots) in dots.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    *dots = dot_two_rows(w, x.add(2 * pair * K_BLOCK));
                }
            } else {
                for (r, dot) in dots.iter_mut().enumerate() {
                    *dot = dot_one_row::<DOT>(w, x.add(r * K_BLOCK));
                }
            }
            dots
        }
    }
    #[inline(always)]
    unsafe fn add_scaled_dots<const MADDUBS_SUMS_MAX: usize, const M: usize>(
        sums: [I32x8; M],
        w: &[U8x32],
        x: *const i8,
        factor: I32x8,
    ) -> [I32x8; M] {
        unsafe {
            let dots = Self::dots::<MADDUBS_SUMS_MAX, M>(w, x);
            from_fn(|r| from_fn(|i| vmlaq_s32(sums[r][i], dots[r][i], factor[i])))
        }
    }
    #[inline(always)]
    unsafe fn madd2_i16(sums: I32x8, x: *const i16, a: I32x8, b: I32x8) -> I32x8 {
        unsafe {
            let (first, second) = (i32::from(x.read_unaligned()), i32::from(x.add(1).read_unaligned()));
            from_fn(|i| vmlaq_n_s32(vmlaq_n_s32(sums[i], a[i], first), b[i], second))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) p, options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn round_and_store_i8(p: *mut i8, x: F32x8) -> I32x8 {
        unsafe {
            let [a, b] = x.map(|x| vcvtnq_s32_f32(x));
            vst1_s8(p, vqmovn_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b))));
            [a, b]
        }
    }
    #[inline(always)]
    unsafe fn reduce_sum_i32([a, b]: I32x8) -> i32 {
        unsafe { vaddvq_s32(vaddq_s32(a, b)) }
    }
    #[inline(always)]
    unsafe fn reduce_max([a, b]: F32x8) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(a, b)) }
    }
}

/// Dot products with one row of activations.
///
/// # Safety
/// The processor has the instructions that `DOT` names; `x` has four activations per k-group.
#[inline(always)]
unsafe fn dot_one_row<const DOT: u8>(w: &[U8x32], x: *const i8) -> I32x8 {
    let (fours, rest) = w.as_chunks::<4>();
    debug_assert!(rest.is_empty(), "four or eight k-groups");
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sums = [vdupq_n_s32(0); 2];
        for (index, [a, b, c, d]) in fours.iter().enumerate() {
            let x = vld1q_s8(x.add(16 * index));
            for half in 0..2 {
                sums[half] = dot_k_group::<DOT, 0>(sums[half], a[half], x);
                sums[half] = dot_k_group::<DOT, 1>(sums[half], b[half], x);
                sums[half] = dot_k_group::<DOT, 2>(sums[half], c[half], x);
                sums[half] = dot_k_group::<DOT, 3>(sums[half], d[half], x);
            }
        }
        sums
    }
}

/// Dot products with two rows of activations.
///
/// # Safety
/// The processor has i8mm; `x` has four activations per k-group, and as many `K_BLOCK` bytes further.
#[inline(always)]
unsafe fn dot_two_rows(w: &[U8x32], x: *const i8) -> [I32x8; 2] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        // `sums[half][pair]`: two rows of weights with both rows of activations.
        let (mut sums, mut dots) = ([[vdupq_n_s32(0); 2]; 2], [[vdupq_n_s32(0); 2]; 2]);
        for (index, [a, b, c, d]) in w.as_chunks::<4>().0.iter().enumerate() {
            let x = x.add(16 * index).cast();
            let (x, y) = (vld1q_s64(x), vld1q_s64(x.byte_add(K_BLOCK)));
            for (first, second, x) in [(a, b, vzip1q_s64(x, y)), (c, d, vzip2q_s64(x, y))] {
                for half in 0..2 {
                    // Two k-groups of four rows become eight inputs of two rows each. The compiler moves this out of the loop over rows.
                    let (first, second) = (vreinterpretq_u32_u8(first[half]), vreinterpretq_u32_u8(second[half]));
                    sums[half][0] = smmla(sums[half][0], vzip1q_u32(first, second), x);
                    sums[half][1] = smmla(sums[half][1], vzip2q_u32(first, second), x);
                }
            }
        }
        for (half, [a, b]) in sums.into_iter().enumerate() {
            (dots[0][half], dots[1][half]) = (vuzp1q_s32(a, b), vuzp2q_s32(a, b));
        }
        dots
    }
}

/// Adds to the sums of four rows the dot products of one k-group with the four activations in lane `LANE` of `x`.
///
/// # Safety
/// The processor has the instructions that `DOT` names.
#[inline(always)]
unsafe fn dot_k_group<const DOT: u8, const LANE: i32>(sums: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: guaranteed by the caller; registers only.
    unsafe {
        if DOT != NEON {
            let mut sums = sums;
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]", inout(vreg) sums, in(vreg) w, in(vreg) x, const LANE,
                options(pure, nomem, nostack, preserves_flags));
            sums
        } else {
            let w = vreinterpretq_s8_u8(w);
            let x = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(x)));
            // |w| <= 128 and |x| <= 127: the sum of two products is at most 32512, within 16 bits.
            let pairs = vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x));
            vpadalq_s16(sums, pairs)
        }
    }
}

/// Adds to `sums` the dot products of two rows of eight weights with two rows of eight activations, `[weight row][activation row]`.
///
/// # Safety
/// The processor has i8mm.
#[inline(always)]
unsafe fn smmla(mut sums: int32x4_t, w: uint32x4_t, x: int64x2_t) -> int32x4_t {
    // SAFETY: guaranteed by the caller; registers only.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sums, in(vreg) w, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

#[inline(always)]
unsafe fn widen(x: uint16x8_t) -> [uint32x4_t; 2] {
    // SAFETY: registers only.
    unsafe { [vmovl_u16(vget_low_u16(x)), vmovl_high_u16(x)] }
}

#[inline(always)]
unsafe fn f16_to_f32(x: uint16x4_t) -> float32x4_t {
    let y;
    // SAFETY: registers only.
    unsafe { asm!("fcvtl {0:v}.4s, {1:v}.4h", lateout(vreg) y, in(vreg) x, options(pure, nomem, nostack, preserves_flags)) };
    y
}

/// Rounds to nearest even, the default rounding mode of a thread.
#[inline(always)]
unsafe fn f32_to_f16(x: float32x4_t) -> uint16x4_t {
    let y;
    // SAFETY: registers only.
    unsafe { asm!("fcvtn {0:v}.4h, {1:v}.4s", lateout(vreg) y, in(vreg) x, options(pure, nomem, nostack, preserves_flags)) };
    y
}
