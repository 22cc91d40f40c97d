//! The operations in plain Rust, for any processor. The SIMD implementations are tested against this one, bit for bit.

use super::{Isa, K_BLOCK, LANES, SIGNED_WEIGHTS};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(in super::super) struct Scalar;

type F32x8 = [f32; LANES];
type I32x8 = [i32; LANES];
type U8x32 = [u8; 4 * LANES];

fn from_lanes(f: impl Fn(usize) -> f32) -> F32x8 {
    std::array::from_fn(f)
}

// The longer operations are not inlined. Inlined, their eight unrolled lanes make this table more than twice the size of all
// other kernels together, and most of the library's compile time.
impl Isa for Scalar {
    type F32x8 = F32x8;
    type I32x8 = I32x8;
    type U8x32 = U8x32;

    unsafe fn zero() -> F32x8 {
        [0.0; LANES]
    }
    unsafe fn splat(x: f32) -> F32x8 {
        [x; LANES]
    }
    unsafe fn load(p: *const f32) -> F32x8 {
        // SAFETY: the caller upholds `Isa`'s contract.
        unsafe { p.cast::<F32x8>().read_unaligned() }
    }
    unsafe fn store(p: *mut f32, x: F32x8) {
        // SAFETY: the caller upholds `Isa`'s contract.
        unsafe { p.cast::<F32x8>().write_unaligned(x) }
    }
    #[inline(never)]
    unsafe fn load_f16(p: *const u16) -> F32x8 {
        // SAFETY: the caller upholds `Isa`'s contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        from_lanes(|i| f16::from_bits(bits[i]).to_f32())
    }
    #[inline(never)]
    unsafe fn load_bf16(p: *const u16) -> F32x8 {
        // SAFETY: the caller upholds `Isa`'s contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        from_lanes(|i| bf16::from_bits(bits[i]).to_f32())
    }
    unsafe fn load_u8_as_i32(p: *const u8) -> I32x8 {
        // SAFETY: the caller upholds `Isa`'s contract.
        unsafe { p.cast::<[u8; LANES]>().read_unaligned() }.map(i32::from)
    }
    unsafe fn load_i8_as_i32(p: *const u8) -> I32x8 {
        // SAFETY: the caller upholds `Isa`'s contract.
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(i32::from)
    }
    #[inline(never)]
    unsafe fn store_f16(p: *mut u16, x: F32x8) {
        // SAFETY: the caller upholds `Isa`'s contract.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(x.map(|x| f16::from_f32(x).to_bits())) }
    }
    unsafe fn add(x: F32x8, y: F32x8) -> F32x8 {
        from_lanes(|i| x[i] + y[i])
    }
    unsafe fn sub(x: F32x8, y: F32x8) -> F32x8 {
        from_lanes(|i| x[i] - y[i])
    }
    unsafe fn mul(x: F32x8, y: F32x8) -> F32x8 {
        from_lanes(|i| x[i] * y[i])
    }
    unsafe fn div(x: F32x8, y: F32x8) -> F32x8 {
        from_lanes(|i| x[i] / y[i])
    }
    unsafe fn max(x: F32x8, y: F32x8) -> F32x8 {
        // Like x86's `maxps`: `y` unless `x > y`, so `y` if either is NaN.
        from_lanes(|i| if x[i] > y[i] { x[i] } else { y[i] })
    }
    unsafe fn abs(x: F32x8) -> F32x8 {
        x.map(f32::abs)
    }
    #[inline(never)]
    unsafe fn fma(x: F32x8, y: F32x8, z: F32x8) -> F32x8 {
        from_lanes(|i| x[i].mul_add(y[i], z[i]))
    }
    unsafe fn select_less(x: F32x8, y: F32x8, a: F32x8, b: F32x8) -> F32x8 {
        from_lanes(|i| if x[i] < y[i] { a[i] } else { b[i] })
    }
    #[inline(never)]
    unsafe fn round(x: F32x8) -> F32x8 {
        x.map(f32::round_ties_even)
    }
    #[inline(never)]
    unsafe fn exp2_of_integral(x: F32x8) -> F32x8 {
        x.map(|x| f32::from_bits(((x as i32 + 127) << 23) as u32))
    }
    unsafe fn to_f32(x: I32x8) -> F32x8 {
        x.map(|x| x as f32)
    }

    unsafe fn add_i32(x: I32x8, y: I32x8) -> I32x8 {
        std::array::from_fn(|i| x[i] + y[i])
    }
    unsafe fn zero_i32() -> I32x8 {
        [0; LANES]
    }
    unsafe fn load_bytes(p: *const u8) -> U8x32 {
        // SAFETY: the caller upholds `Isa`'s contract.
        unsafe { p.cast::<U8x32>().read_unaligned() }
    }
    #[inline(never)]
    unsafe fn nibbles(x: U8x32) -> (U8x32, U8x32) {
        (x.map(|b| b & 15), x.map(|b| b >> 4))
    }
    #[inline(never)]
    unsafe fn nth_byte_to_f32<const SIGNED: bool>(x: U8x32, n: usize) -> F32x8 {
        from_lanes(|i| if SIGNED { f32::from(x[i * 4 + n] as i8) } else { f32::from(x[i * 4 + n]) })
    }
    #[inline(never)]
    unsafe fn or_shifted_bits<const SHIFT: i32, const MASK: i8>(x: U8x32, bits: U8x32) -> U8x32 {
        let shifted = bits.map(|b| if SHIFT < 0 { b >> -SHIFT } else { b << SHIFT });
        std::array::from_fn(|i| x[i] | shifted[i] & MASK as u8)
    }
    #[inline(never)]
    unsafe fn dots<const MADDUBS_SUMS_MAX: usize, const M: usize>(w: &[U8x32], x: *const i8) -> [I32x8; M] {
        let mut sums = [[0i32; LANES]; M];
        for (activation_row, sums) in sums.iter_mut().enumerate() {
            for (k_group, bytes) in w.iter().enumerate() {
                // SAFETY: the caller upholds `Isa`'s contract: four activations per k-group.
                let x = unsafe { x.add(activation_row * K_BLOCK + k_group * 4).cast::<[i8; 4]>().read_unaligned() };
                for (weight_row, sum) in sums.iter_mut().enumerate() {
                    for column in 0..4 {
                        let byte = bytes[weight_row * 4 + column];
                        let weight = if MADDUBS_SUMS_MAX == SIGNED_WEIGHTS { i32::from(byte as i8) } else { i32::from(byte) };
                        *sum += weight * i32::from(x[column]);
                    }
                }
            }
        }
        sums
    }
    #[inline(never)]
    unsafe fn add_scaled_dots<const MADDUBS_SUMS_MAX: usize, const M: usize>(
        sums: [I32x8; M],
        w: &[U8x32],
        x: *const i8,
        factor: I32x8,
    ) -> [I32x8; M] {
        // SAFETY: the caller upholds `Isa`'s contract.
        let new = unsafe { Self::dots::<MADDUBS_SUMS_MAX, M>(w, x) };
        std::array::from_fn(|r| std::array::from_fn(|i| sums[r][i] + new[r][i] * factor[i]))
    }
    #[inline(never)]
    unsafe fn madd2_i16(sums: I32x8, x: *const i16, a: I32x8, b: I32x8) -> I32x8 {
        // SAFETY: the caller upholds `Isa`'s contract.
        let [x, y] = unsafe { x.cast::<[i16; 2]>().read_unaligned() }.map(i32::from);
        std::array::from_fn(|i| sums[i] + x * a[i] + y * b[i])
    }
    unsafe fn prefetch(_: *const u8) {}
    #[inline(never)]
    unsafe fn round_and_store_i8(p: *mut i8, x: F32x8) -> I32x8 {
        let integers = x.map(|x| x.round_ties_even() as i8);
        // SAFETY: the caller upholds `Isa`'s contract.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(integers) };
        integers.map(i32::from)
    }
    unsafe fn reduce_sum_i32(x: I32x8) -> i32 {
        x.into_iter().sum()
    }
    #[inline(never)]
    unsafe fn reduce_max(x: F32x8) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
}
