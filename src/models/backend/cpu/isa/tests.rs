//! Every operation of every instruction set against the scalar reference, bit for bit, on edge cases of rounding and range.

use super::*;

/// The results of operations, lane by lane, each with its operation's name.
type Results = Vec<(&'static str, [u32; LANES])>;

#[test]
fn every_operation_matches_the_reference() {
    // SAFETY: plain Rust.
    let want = unsafe { results::<Scalar>() };
    #[allow(unused_mut, reason = "some processors have only the reference")]
    let mut all: Vec<(&str, Results)> = Vec::new();
    // SAFETY of every block: it runs only if its instruction set was detected.
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        all.push(("avx2", unsafe { results::<Avx2<MADDUBS>>() }));
        if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl") {
            all.push(("avx512vnni", unsafe { results::<Avx2<AVX512_VNNI>>() }));
        }
        if is_x86_feature_detected!("avxvnni") {
            all.push(("avxvnni", unsafe { results::<Avx2<AVX_VNNI>>() }));
        }
    }
    #[cfg(target_arch = "aarch64")]
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        all.push(("neon", unsafe { results::<Neon<NEON>>() }));
        #[target_feature(enable = "dotprod")]
        fn dotprod() -> Results {
            unsafe { results::<Neon<DOTPROD>>() }
        }
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            all.push(("dotprod", unsafe { dotprod() }));
        }
        #[target_feature(enable = "dotprod,i8mm")]
        fn i8mm() -> Results {
            unsafe { results::<Neon<I8MM>>() }
        }
        if std::arch::is_aarch64_feature_detected!("dotprod") && std::arch::is_aarch64_feature_detected!("i8mm") {
            all.push(("i8mm", unsafe { i8mm() }));
        }
    }
    for (isa, got) in all {
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got, want, "{isa}, result {index}");
        }
        assert_eq!(got.len(), want.len());
    }
}

/// Edge cases of f32, of f16 and of rounding.
fn numbers() -> Vec<f32> {
    let positive = [0.0, 1e-45, 1e-38, 6e-8, 2.98e-8, 6.1e-5, 0.3, 0.5, 1.0, 1.5, 2.5, 126.5, 2049.0, 65504.0, 65519.0, 65520.0, 8388609.0];
    // Halfway between two f16 numbers, and one bit to either side.
    let ties = [0x3f80_1000u32, 0x3f80_3000, 0x3380_0000, 0x33c0_0000, 0x387f_f000].map(|bits| [bits - 1, bits, bits + 1]);
    let positive = positive.into_iter().chain(ties.into_iter().flatten().map(f32::from_bits)).chain([f32::MAX, f32::INFINITY]);
    positive.flat_map(|x| [x, -x]).collect()
}

/// # Safety
/// The processor has the instruction set.
#[inline(always)]
unsafe fn results<S: Isa>() -> Results {
    let mut results = Results::new();
    let numbers = numbers();
    let bytes: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
    let eight = |i: usize, step: usize| -> [f32; LANES] { std::array::from_fn(|lane| numbers[(i + lane * step) % numbers.len()]) };
    // SAFETY: guaranteed by the caller; every pointer is valid for a whole vector.
    unsafe {
        let load = |x: [f32; LANES]| S::load(x.as_ptr());
        let mut floats = |name, x: S::F32x8| {
            let mut lanes = [0f32; LANES];
            S::store(lanes.as_mut_ptr(), x);
            results.push((name, lanes.map(f32::to_bits)));
        };
        let nan = S::splat(f32::NAN);
        for i in 0..numbers.len() {
            let x = load(eight(i, 1));
            for step in 1..8 {
                let (y, z) = (load(eight(3 * i + step, step)), load(eight(7 * i + step, step + 1)));
                floats("max", S::max(x, y));
                floats("select_less", S::select_less(x, y, z, x));
                // The bits of a NaN are unspecified, so NaN results are replaced by zero.
                for (name, y) in
                    [("add", S::add(x, y)), ("sub", S::sub(x, y)), ("mul", S::mul(x, y)), ("div", S::div(x, y)), ("fma", S::fma(x, y, z))]
                {
                    floats(name, S::select_less(S::abs(y), S::splat(f32::INFINITY), y, S::zero()));
                }
            }
            floats("max", S::max(x, nan));
            floats("max", S::max(nan, x));
            floats("select_less", S::select_less(x, nan, x, S::zero()));
            floats("abs", S::abs(x));
            floats("round", S::round(x));
        }
        for i in 0..2000 {
            floats("exp", exp::<S>(S::splat(-0.05 * i as f32)));
        }
        for i in -126..=127 {
            floats("exp2_of_integral", S::exp2_of_integral(S::splat(i as f32)));
        }
        let halves: Vec<u16> = (0..=u16::MAX).filter(|x| x & 0x7c00 != 0x7c00 || x & 0x3ff == 0).collect();
        for halves in halves.as_chunks::<LANES>().0 {
            floats("load_f16", S::load_f16(halves.as_ptr()));
            floats("load_bf16", S::load_bf16(halves.as_ptr()));
        }
        for bytes in bytes.as_chunks::<LANES>().0 {
            floats("load_u8_as_i32", S::to_f32(S::load_u8_as_i32(bytes.as_ptr())));
            floats("load_i8_as_i32", S::to_f32(S::load_i8_as_i32(bytes.as_ptr())));
        }
        let mut all_bytes = |name, x: S::U8x32| {
            for which in 0..4 {
                floats(name, S::nth_byte_to_f32::<false>(x, which));
                floats(name, S::nth_byte_to_f32::<true>(x, which));
            }
        };
        for i in (0..bytes.len() - 64).step_by(32) {
            let (x, y) = (S::load_bytes(bytes.as_ptr().add(i)), S::load_bytes(bytes.as_ptr().add(i + 32)));
            let (low, high) = S::nibbles(x);
            for (name, x) in [("load_bytes", x), ("low nibbles", low), ("high nibbles", high)] {
                all_bytes(name, x);
            }
            all_bytes("or_shifted_bits", S::or_shifted_bits::<4, 48>(low, y));
            all_bytes("or_shifted_bits", S::or_shifted_bits::<1, 16>(low, y));
            all_bytes("or_shifted_bits", S::or_shifted_bits::<0, 48>(low, y));
            all_bytes("or_shifted_bits", S::or_shifted_bits::<-2, 48>(low, y));
            all_bytes("or_shifted_bits", S::or_shifted_bits::<-3, 16>(low, y));
        }
        // Random activations; before them the largest ones, all of one sign, with the largest weights.
        for i in 0..64 {
            let x: [i8; 4 * K_BLOCK] =
                std::array::from_fn(|j| if i < 8 { 127 * (1 - (i as i8 & 2)) } else { (bytes[32 * i + j] as i8).max(-127) });
            let at = |j: usize, most: u8| -> [u8; K_BLOCK] {
                std::array::from_fn(|k| if i < 8 { most } else { bytes[32 * (i + j) + k] & most })
            };
            let w = |most: u8| -> [S::U8x32; 8] { std::array::from_fn(|j| S::load_bytes(at(j, most).as_ptr())) };
            let (a, b) = (S::load_i8_as_i32(bytes.as_ptr().add(i)), S::load_i8_as_i32(bytes.as_ptr().add(i + 8)));
            let small = S::load_u8_as_i32(at(9, 63).as_ptr());
            macro_rules! rows {
                ($($m:literal)*) => {$(
                    for dots in [
                        S::dots::<8, $m>(&w(15), x.as_ptr()),
                        S::dots::<4, $m>(&w(31), x.as_ptr()),
                        S::dots::<2, $m>(&w(63), x.as_ptr()),
                        S::dots::<2, $m>(&w(63)[4..], x.as_ptr().add(16)),
                        S::dots::<SIGNED_WEIGHTS, $m>(&w(0x7f), x.as_ptr()),
                        S::dots::<SIGNED_WEIGHTS, $m>(&w(0x80), x.as_ptr()),
                        S::dots::<SIGNED_WEIGHTS, $m>(&w(0xff), x.as_ptr()),
                    ] {
                        dots.into_iter().for_each(|dot| floats("dots", S::to_f32(dot)));
                    }
                    let sums: [S::I32x8; $m] = std::array::from_fn(|r| if r % 2 == 0 { a } else { b });
                    for factor in [a, small] {
                        for dots in [
                            S::add_scaled_dots::<8, $m>(sums, &w(15), x.as_ptr(), factor),
                            S::add_scaled_dots::<8, $m>(sums, &w(15)[4..], x.as_ptr().add(16), factor),
                            S::add_scaled_dots::<4, $m>(sums, &w(31), x.as_ptr(), factor),
                            S::add_scaled_dots::<2, $m>(sums, &w(63)[4..], x.as_ptr().add(16), factor),
                        ] {
                            dots.into_iter().for_each(|dot| floats("add_scaled_dots", S::to_f32(dot)));
                        }
                    }
                )*};
            }
            rows!(1 2 3 4);
            let pair = [16 * 127 * if i % 2 == 0 { 1 } else { -1 }, i16::from(x[i % K_BLOCK]) * 32];
            floats("madd2_i16", S::to_f32(S::madd2_i16(a, pair.as_ptr(), b, small)));
        }
        for i in 0..numbers.len() {
            let x = eight(i, 1);
            let mut half = [0u16; LANES];
            S::store_f16(half.as_mut_ptr(), load(x));
            results.push(("store_f16", half.map(u32::from)));
            let mut whole = [0i8; LANES];
            let words = S::round_and_store_i8(
                whole.as_mut_ptr(),
                load(std::array::from_fn(|lane| (i * LANES + lane) as f32 / 2.0 % 254.0 - 127.0)),
            );
            results.push(("round_and_store_i8", whole.map(|x| x as u32)));
            results.push(("reduce_sum_i32", [S::reduce_sum_i32(S::add_i32(words, S::add_i32(words, S::zero_i32()))) as u32; LANES]));
            results.push(("reduce_max", [S::reduce_max(load(x)).to_bits() & 0x7fff_ffff; LANES]));
        }
    }
    results
}
