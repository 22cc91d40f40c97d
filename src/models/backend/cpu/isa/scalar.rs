//! The scalar reference: plain Rust, for any processor.

use super::{Isa, K_BLOCK, LANES};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(in super::super) struct Scalar;

type F = [f32; LANES];
type I = [i32; LANES];
type B = [u8; 4 * LANES];

fn each(f: impl Fn(usize) -> f32) -> F {
    std::array::from_fn(f)
}

// The longer operations are not inlined. Inlined, their eight unrolled lanes make this table more than twice the size of all
// other kernels together, and most of the library's compile time.
impl Isa for Scalar {
    type F = F;
    type I = I;
    type B = B;

    unsafe fn zero() -> F {
        [0.0; LANES]
    }
    unsafe fn splat(x: f32) -> F {
        [x; LANES]
    }
    unsafe fn load(p: *const f32) -> F {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<F>().read_unaligned() }
    }
    unsafe fn store(p: *mut f32, x: F) {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<F>().write_unaligned(x) }
    }
    #[inline(never)]
    unsafe fn load_f16(p: *const u16) -> F {
        // SAFETY: the trait's contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| f16::from_bits(bits[i]).to_f32())
    }
    #[inline(never)]
    unsafe fn load_bf16(p: *const u16) -> F {
        // SAFETY: the trait's contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| bf16::from_bits(bits[i]).to_f32())
    }
    unsafe fn load_u8(p: *const u8) -> I {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[u8; LANES]>().read_unaligned() }.map(i32::from)
    }
    unsafe fn load_i8(p: *const u8) -> I {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(i32::from)
    }
    #[inline(never)]
    unsafe fn store_f16(p: *mut u16, x: F) {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(x.map(|x| f16::from_f32(x).to_bits())) }
    }
    unsafe fn add(x: F, y: F) -> F {
        each(|i| x[i] + y[i])
    }
    unsafe fn sub(x: F, y: F) -> F {
        each(|i| x[i] - y[i])
    }
    unsafe fn mul(x: F, y: F) -> F {
        each(|i| x[i] * y[i])
    }
    unsafe fn div(x: F, y: F) -> F {
        each(|i| x[i] / y[i])
    }
    unsafe fn max(x: F, y: F) -> F {
        // As x86's `maxps`: the second operand unless the first is larger.
        each(|i| if x[i] > y[i] { x[i] } else { y[i] })
    }
    unsafe fn abs(x: F) -> F {
        x.map(f32::abs)
    }
    #[inline(never)]
    unsafe fn fma(x: F, y: F, z: F) -> F {
        each(|i| x[i].mul_add(y[i], z[i]))
    }
    unsafe fn select_less(x: F, y: F, a: F, b: F) -> F {
        each(|i| if x[i] < y[i] { a[i] } else { b[i] })
    }
    #[inline(never)]
    unsafe fn round(x: F) -> F {
        x.map(f32::round_ties_even)
    }
    #[inline(never)]
    unsafe fn exp2_int(x: F) -> F {
        x.map(|x| f32::from_bits(((x as i32 + 127) << 23) as u32))
    }
    unsafe fn to_f32(x: I) -> F {
        x.map(|x| x as f32)
    }

    unsafe fn add_i32(x: I, y: I) -> I {
        std::array::from_fn(|i| x[i] + y[i])
    }
    unsafe fn zero_i32() -> I {
        [0; LANES]
    }
    unsafe fn load_bytes(p: *const u8) -> B {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<B>().read_unaligned() }
    }
    #[inline(never)]
    unsafe fn nibbles(x: B) -> (B, B) {
        (x.map(|b| b & 15), x.map(|b| b >> 4))
    }
    #[inline(never)]
    unsafe fn byte_to_f32<const SIGNED: bool>(x: B, byte: usize) -> F {
        each(|i| if SIGNED { f32::from(x[i * 4 + byte] as i8) } else { f32::from(x[i * 4 + byte]) })
    }
    #[inline(never)]
    unsafe fn or_shifted_bits<const SHIFT: i32, const MASK: i8>(x: B, planes: B) -> B {
        let shifted = planes.map(|b| if SHIFT < 0 { b >> -SHIFT } else { b << SHIFT });
        std::array::from_fn(|i| x[i] | shifted[i] & MASK as u8)
    }
    #[inline(never)]
    unsafe fn dots<const MADDUBS_PAIRS: usize, const M: usize>(w: &[B], x: *const i8) -> [I; M] {
        let mut sums = [[0i32; LANES]; M];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (k_group, bytes) in w.iter().enumerate() {
                // SAFETY: the trait's contract: four activations per k-group.
                let x = unsafe { x.add(r * K_BLOCK + k_group * 4).cast::<[i8; 4]>().read_unaligned() };
                for (row, sum) in sums.iter_mut().enumerate() {
                    for input in 0..4 {
                        let byte = bytes[row * 4 + input];
                        let weight = if MADDUBS_PAIRS == 0 { i32::from(byte as i8) } else { i32::from(byte) };
                        *sum += weight * i32::from(x[input]);
                    }
                }
            }
        }
        sums
    }
    #[inline(never)]
    unsafe fn add_scaled_dots<const MADDUBS_PAIRS: usize, const M: usize>(sums: [I; M], w: &[B], x: *const i8, factor: I) -> [I; M] {
        // SAFETY: the trait's contract.
        let new = unsafe { Self::dots::<MADDUBS_PAIRS, M>(w, x) };
        std::array::from_fn(|r| std::array::from_fn(|i| sums[r][i] + new[r][i] * factor[i]))
    }
    #[inline(never)]
    unsafe fn madd2_i16(sums: I, x: *const i16, a: I, b: I) -> I {
        // SAFETY: the trait's contract.
        let [x, y] = unsafe { x.cast::<[i16; 2]>().read_unaligned() }.map(i32::from);
        std::array::from_fn(|i| sums[i] + x * a[i] + y * b[i])
    }
    unsafe fn prefetch(_: *const u8) {}
    #[inline(never)]
    unsafe fn store_i8(p: *mut i8, x: F) -> I {
        let integers = x.map(|x| x.round_ties_even() as i8);
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(integers) };
        integers.map(i32::from)
    }
    unsafe fn add_lanes_i32(x: I) -> i32 {
        x.into_iter().sum()
    }
    #[inline(never)]
    unsafe fn max_lane(x: F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
}
