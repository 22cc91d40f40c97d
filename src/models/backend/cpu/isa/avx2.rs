//! AVX2 with FMA and F16C: x86-64 processors since 2013 (Intel Haswell) and 2015 (AMD Excavator). With VNNI (Zen 4 and Ice Lake;
//! Alder Lake in its AVX-VNNI encoding), one instruction computes a dot product instead of three.

use super::{Isa, K_BLOCK, SIGNED_WEIGHTS};
use std::arch::x86_64::*;

/// `DOT` selects the instructions that multiply bytes: one of the three constants below.
///
/// A k-block is a tile of 8 weight rows x `K_BLOCK` columns, in eight k-groups of four columns (see `isa`); `r` is one of the M rows
/// of activations.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2<const DOT: u8>;

pub(in super::super) const MADDUBS: u8 = 0;
pub(in super::super) const AVX512_VNNI: u8 = 1;
pub(in super::super) const AVX_VNNI: u8 = 2;

// SAFETY of every block: the caller upholds `Isa`'s contract: the processor has AVX2, FMA, F16C and the instructions that
// `DOT` names; pointers are valid for what is read or written.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl<const DOT: u8> Isa for Avx2<DOT> {
    type F32x8 = __m256;
    type I32x8 = __m256i;
    type U8x32 = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_u8_as_i32(p: *const u8) -> __m256i {
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8_as_i32(p: *const u8) -> __m256i {
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: __m256) {
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    unsafe fn add(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_add_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn sub(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn mul(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn div(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_div_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn max(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_max_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn abs(x: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), x) }
    }
    #[inline(always)]
    unsafe fn fma(x: __m256, y: __m256, z: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(x, y, z) }
    }
    #[inline(always)]
    unsafe fn select_less(x: __m256, y: __m256, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(b, a, _mm256_cmp_ps::<_CMP_LT_OQ>(x, y)) }
    }
    #[inline(always)]
    unsafe fn round(x: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    unsafe fn exp2_of_integral(x: __m256) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127)))) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn add_i32(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(x, y) }
    }
    #[inline(always)]
    unsafe fn zero_i32() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(x: __m256i) -> (__m256i, __m256i) {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            (_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(x), mask))
        }
    }
    #[inline(always)]
    unsafe fn nth_byte_to_f32<const SIGNED: bool>(x: __m256i, n: usize) -> __m256 {
        unsafe {
            let number = if SIGNED {
                _mm256_srai_epi32::<24>(_mm256_sll_epi32(x, _mm_cvtsi32_si128(24 - 8 * n as i32)))
            } else {
                _mm256_and_si256(_mm256_srl_epi32(x, _mm_cvtsi32_si128(8 * n as i32)), _mm256_set1_epi32(255))
            };
            _mm256_cvtepi32_ps(number)
        }
    }
    #[inline(always)]
    unsafe fn or_shifted_bits<const SHIFT: i32, const MASK: i8>(x: __m256i, bits: __m256i) -> __m256i {
        // AVX2 cannot shift bytes, so 16-bit words are shifted. The mask removes the bits that cross into the other byte.
        unsafe {
            let shifted = if SHIFT < 0 {
                _mm256_srl_epi16(bits, _mm_cvtsi32_si128(-SHIFT))
            } else {
                _mm256_sll_epi16(bits, _mm_cvtsi32_si128(SHIFT))
            };
            _mm256_or_si256(x, _mm256_and_si256(shifted, _mm256_set1_epi8(MASK)))
        }
    }
    #[inline(always)]
    unsafe fn dots<const MADDUBS_SUMS_MAX: usize, const M: usize>(w: &[__m256i], x: *const i8) -> [__m256i; M] {
        unsafe {
            let (ones, mut sums) = (_mm256_set1_epi16(1), [_mm256_setzero_si256(); M]);
            if MADDUBS_SUMS_MAX == SIGNED_WEIGHTS {
                // One k-group at a time: eight of them with their absolute values do not fit in the registers.
                for (k_group, w) in w.iter().enumerate() {
                    let absolute = _mm256_abs_epi8(*w);
                    for (r, sums) in sums.iter_mut().enumerate() {
                        *sums = dot_u8_i8::<DOT>(*sums, absolute, _mm256_sign_epi8(broadcast_k_group(x.add(r * K_BLOCK), k_group), *w));
                    }
                }
                return sums;
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = x.add(r * K_BLOCK);
                if DOT == MADDUBS {
                    *sums = maddubs_dots::<MADDUBS_SUMS_MAX>(*sums, w, x, ones);
                } else {
                    for (k_group, w) in w.iter().enumerate() {
                        *sums = dot_u8_i8::<DOT>(*sums, *w, broadcast_k_group(x, k_group));
                    }
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn add_scaled_dots<const MADDUBS_SUMS_MAX: usize, const M: usize>(
        mut sums: [__m256i; M],
        w: &[__m256i],
        x: *const i8,
        factor: __m256i,
    ) -> [__m256i; M] {
        // `SIGNED_WEIGHTS` is not allowed: `maddubs` takes unsigned weights only.
        unsafe {
            if DOT == MADDUBS {
                // Adding up the pairs takes a multiplication by 1 anyway (`pmaddwd`), so it multiplies by the factor instead.
                let factor = interleave_i16(factor, factor);
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = maddubs_dots::<MADDUBS_SUMS_MAX>(*sums, w, x.add(r * K_BLOCK), factor);
                }
            } else {
                for (sums, new) in sums.iter_mut().zip(Self::dots::<MADDUBS_SUMS_MAX, M>(w, x)) {
                    *sums = _mm256_add_epi32(*sums, _mm256_mullo_epi32(new, factor));
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn madd2_i16(sums: __m256i, x: *const i16, a: __m256i, b: __m256i) -> __m256i {
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm256_add_epi32(sums, _mm256_madd_epi16(x, interleave_i16(a, b)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn round_and_store_i8(p: *mut i8, x: __m256) -> __m256i {
        unsafe {
            let as_i32 = _mm256_cvtps_epi32(x);
            let as_i16 = _mm_packs_epi32(_mm256_castsi256_si128(as_i32), _mm256_extracti128_si256::<1>(as_i32));
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(as_i16, as_i16));
            // Not saturated, unlike the stored bytes. Both are the same for values in -127..=127.
            as_i32
        }
    }
    #[inline(always)]
    unsafe fn reduce_sum_i32(x: __m256i) -> i32 {
        unsafe {
            let fours = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let twos = _mm_add_epi32(fours, _mm_shuffle_epi32::<0b01_00_11_10>(fours));
            _mm_cvtsi128_si32(_mm_add_epi32(twos, _mm_shuffle_epi32::<0b10_11_00_01>(twos)))
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(x: __m256) -> f32 {
        unsafe {
            let fours = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let twos = _mm_max_ps(fours, _mm_movehl_ps(fours, fours));
            _mm_cvtss_f32(_mm_max_ss(twos, _mm_movehdup_ps(twos)))
        }
    }
}

/// Adds to each lane of `sums` four products of an unsigned byte of `w`, at most 128, and a signed byte of `x`, at least -127.
#[inline(always)]
unsafe fn dot_u8_i8<const DOT: u8>(sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: registers only, and the processor has the instructions that `DOT` names.
    unsafe {
        match DOT {
            AVX512_VNNI => _mm256_dpbusd_epi32(sums, w, x),
            AVX_VNNI => _mm256_dpbusd_avx_epi32(sums, w, x),
            // The sum of two products is at most 2 * 128 * 127 = 32512, so maddubs does not saturate.
            _ => _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))),
        }
    }
}

/// Adds to `sums` the dot products with one row of activations, times `factors`: each lane has its factor twice, as two i16.
#[inline(always)]
unsafe fn maddubs_dots<const MADDUBS_SUMS_MAX: usize>(mut sums: __m256i, w: &[__m256i], x: *const i8, factors: __m256i) -> __m256i {
    // SAFETY: guaranteed by the caller: four activations per k-group, and the processor has AVX2.
    unsafe {
        for (chunk, w) in w.chunks(MADDUBS_SUMS_MAX).enumerate() {
            let mut pairs = _mm256_maddubs_epi16(w[0], broadcast_k_group(x, chunk * MADDUBS_SUMS_MAX));
            for (k_group, w) in w.iter().enumerate().skip(1) {
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(*w, broadcast_k_group(x, chunk * MADDUBS_SUMS_MAX + k_group)));
            }
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, factors));
        }
        sums
    }
}

/// The four activations of a k-group, repeated in every lane.
#[inline(always)]
unsafe fn broadcast_k_group(x: *const i8, k_group: usize) -> __m256i {
    // SAFETY: guaranteed by the caller: `x` reaches that far, and the processor has AVX2.
    unsafe { _mm256_set1_epi32(x.add(4 * k_group).cast::<i32>().read_unaligned()) }
}

/// In every lane the low 16 bits of `a`, and above them the low 16 bits of `b`.
#[inline(always)]
unsafe fn interleave_i16(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: registers only, and the processor has AVX2.
    unsafe { _mm256_blend_epi16::<0b1010_1010>(a, _mm256_slli_epi32::<16>(b)) }
}
