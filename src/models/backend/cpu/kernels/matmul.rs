//! One row panel (eight weight rows, see `weights/layout.rs`) times activations, for one row of activations and for hundreds.
//!
//! The order in which an output is summed over its inputs does not depend on the number of rows. Inside a block, integers are
//! summed exactly, or floats by one fused multiply-add per input. Blocks are added from first to last.

use super::super::isa::{Isa, K_BLOCK, LANES, SIGNED_WEIGHTS};
use super::super::weights::ints::IntEncoding;
use super::super::weights::layout::{BLOCK_INPUTS_MAX, Layout, QuantizedLayout};
use super::super::weights::scales::BlockScales;
use super::quantize::QuantizedActivations;
use std::mem::MaybeUninit;

/// Rows of activations that are multiplied with one k-block of weights while it is in registers.
const ROW_TILE: usize = 128;
/// Distance of prefetches ahead of the weights. Only products with more than four rows prefetch: a product with one row is
/// limited by memory bandwidth, and prefetching slows it.
const PREFETCH_BYTES: usize = 1024;

/// One row panel times all rows of `x`; `out` is `[row][8]`.
///
/// # Safety
/// The processor has the instruction set. `w` points to `blocks` blocks of the layout; `x` has as many inputs, quantized as the
/// layout's `ActivationQuant` says; `out` has eight floats per row.
#[inline(always)]
pub(super) unsafe fn panel_int8<S: Isa, L: QuantizedLayout>(w: *const u8, blocks: usize, x: &QuantizedActivations, out: *mut f32) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match x.rows {
            1 => few_rows::<S, L, 1>(w, blocks, x, out),
            2 => few_rows::<S, L, 2>(w, blocks, x, out),
            3 => few_rows::<S, L, 3>(w, blocks, x, out),
            4 => few_rows::<S, L, 4>(w, blocks, x, out),
            rows => {
                for first in (0..rows).step_by(ROW_TILE) {
                    if L::Scales::K_QUANT {
                        many_rows_k_quant::<S, L>(w, blocks, x, first, out);
                    } else {
                        many_rows::<S, L>(w, blocks, x, first, out);
                    }
                }
            }
        }
    }
}

/// `sums + dots * (weight scale * activation scale) + weight bias * activation sum`.
#[inline(always)]
unsafe fn accumulate_block<S: Isa>(
    sums: S::F32x8,
    dots: S::I32x8,
    (w_scale, w_bias): (S::F32x8, S::F32x8),
    x_scale: f32,
    x_sum: f32,
) -> S::F32x8 {
    // SAFETY: registers only.
    unsafe {
        let sums = S::fma(S::to_f32(dots), S::mul(w_scale, S::splat(x_scale)), sums);
        S::fma(w_bias, S::splat(x_sum), sums)
    }
}

/// Up to four rows: their sums stay in registers.
#[inline(always)]
unsafe fn few_rows<S: Isa, L: QuantizedLayout, const M: usize>(mut w: *const u8, blocks: usize, x: &QuantizedActivations, out: *mut f32) {
    let group = L::Scales::GROUP;
    // SAFETY: the layout of `QuantizedActivations` and the caller's promise.
    unsafe {
        let mut sums = [S::zero(); M];
        let (mut q, mut scale, mut sum, mut integer_sum) = (x.q.as_ptr(), x.scales.as_ptr(), x.sums.as_ptr(), x.integer_sums.as_ptr());
        for _ in 0..blocks {
            let (mut dots, mut mins) = ([S::zero_i32(); M], [S::zero_i32(); M]);
            for k_block in 0..L::BLOCK_INPUTS / K_BLOCK {
                let ints = L::unpack::<S>(w, k_block);
                if L::Scales::K_QUANT {
                    dots = add_scaled_k_block::<S, L, M>(dots, w, k_block, &ints, q);
                    // After every second sub-block: adds the mins of both, times the sums of their activations, which are
                    // stored in pairs.
                    if ((k_block + 1) * K_BLOCK).is_multiple_of(2 * group) {
                        let second = (k_block + 1) * K_BLOCK / group - 1;
                        let ((_, a), (_, b)) =
                            (L::Scales::sub_block_scales::<S>(w, second - 1), L::Scales::sub_block_scales::<S>(w, second));
                        for (r, mins) in mins.iter_mut().enumerate() {
                            *mins = S::madd2_i16(*mins, integer_sum.add(r * 2), a, b);
                        }
                        integer_sum = integer_sum.add(2 * M);
                    }
                } else {
                    for (dots, new) in dots.iter_mut().zip(&dot_k_block::<S, L, M>(&ints, q)) {
                        *dots = S::add_i32(*dots, *new);
                    }
                }
                q = q.add(M * K_BLOCK);
            }
            if L::Scales::K_QUANT {
                let w_scales = L::Scales::super_block_scales::<S>(w);
                for r in 0..M {
                    sums[r] = accumulate_super_block::<S>(sums[r], dots[r], mins[r], w_scales, *scale.add(r));
                }
            } else {
                let w_scales = L::Scales::scale_bias::<S>(w, 0);
                for r in 0..M {
                    sums[r] = accumulate_block::<S>(sums[r], dots[r], w_scales, *scale.add(r), *sum.add(r));
                }
                sum = sum.add(M);
            }
            scale = scale.add(M);
            w = w.add(L::BLOCK_BYTES);
        }
        for (r, sums) in sums.iter().enumerate() {
            S::store(out.add(r * LANES), *sums);
        }
    }
}

/// Dot products of one k-block with M rows of activations.
#[inline(always)]
unsafe fn dot_k_block<S: Isa, L: QuantizedLayout, const M: usize>(w: &[S::U8x32; 8], x: *const i8) -> [S::I32x8; M] {
    // SAFETY: guaranteed by the caller: a k-block of activations per row. The branch is decided at compile time.
    unsafe {
        match L::Encoding::MADDUBS_SUMS_MAX {
            SIGNED_WEIGHTS => S::dots::<SIGNED_WEIGHTS, M>(w, x),
            2 => S::dots::<2, M>(w, x),
            4 => S::dots::<4, M>(w, x),
            _ => S::dots::<8, M>(w, x),
        }
    }
}

/// K-quants: adds to `dots` the dot products of one k-block with M rows of activations, times the sub-block scales.
#[inline(always)]
unsafe fn add_scaled_k_block<S: Isa, L: QuantizedLayout, const M: usize>(
    dots: [S::I32x8; M],
    w: *const u8,
    k_block: usize,
    ints: &[S::U8x32; 8],
    x: *const i8,
) -> [S::I32x8; M] {
    // SAFETY: guaranteed by the caller: a k-block of activations per row.
    unsafe {
        if L::Scales::GROUP < K_BLOCK {
            let (first, second) =
                (L::Scales::sub_block_scales::<S>(w, k_block * 2).0, L::Scales::sub_block_scales::<S>(w, k_block * 2 + 1).0);
            let dots = add_scaled_dots::<S, L, M>(dots, &ints[..4], x, first);
            add_scaled_dots::<S, L, M>(dots, &ints[4..], x.add(K_BLOCK / 2), second)
        } else {
            add_scaled_dots::<S, L, M>(dots, &ints[..], x, L::Scales::sub_block_scales::<S>(w, k_block).0)
        }
    }
}

#[inline(always)]
unsafe fn add_scaled_dots<S: Isa, L: QuantizedLayout, const M: usize>(
    dots: [S::I32x8; M],
    w: &[S::U8x32],
    x: *const i8,
    scale: S::I32x8,
) -> [S::I32x8; M] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match L::Encoding::MADDUBS_SUMS_MAX {
            SIGNED_WEIGHTS => unreachable!("no K-quant has signed integers"),
            2 => S::add_scaled_dots::<2, M>(dots, w, x, scale),
            4 => S::add_scaled_dots::<4, M>(dots, w, x, scale),
            _ => S::add_scaled_dots::<8, M>(dots, w, x, scale),
        }
    }
}

/// K-quants: `sums + dots * (d * activation scale) + mins * (-dmin * activation scale)`.
#[inline(always)]
unsafe fn accumulate_super_block<S: Isa>(
    sums: S::F32x8,
    dots: S::I32x8,
    mins: S::I32x8,
    (d, minus_dmin): (S::F32x8, S::F32x8),
    x_scale: f32,
) -> S::F32x8 {
    // SAFETY: registers only.
    unsafe {
        let x_scale = S::splat(x_scale);
        let sums = S::fma(S::to_f32(dots), S::mul(d, x_scale), sums);
        S::fma(S::to_f32(mins), S::mul(minus_dmin, x_scale), sums)
    }
}

/// Runs `$body` for groups of `$M` rows, from row `$r` on: groups of four rows (signed integers only), then two, then one. AVX2
/// computes the absolute value of signed weights first, and four rows share that cost.
macro_rules! for_row_groups {
    ($layout:ty, $rows:expr, |$r:ident, $M:ident| $body:block) => {
        let mut next = 0;
        if <$layout as QuantizedLayout>::Encoding::MADDUBS_SUMS_MAX == SIGNED_WEIGHTS {
            for_row_groups!(@by 4, next, $rows, |$r, $M| $body);
        }
        for_row_groups!(@by 2, next, $rows, |$r, $M| $body);
        for_row_groups!(@by 1, next, $rows, |$r, $M| $body);
    };
    (@by $count:literal, $next:ident, $rows:expr, |$r:ident, $M:ident| $body:block) => {
        while $rows - $next >= $count {
            const $M: usize = $count;
            let $r = $next;
            $body
            $next += $count;
        }
    };
}

/// Rows `first..first + ROW_TILE`: one k-block of weights stays in registers while the rows stream past it.
#[inline(always)]
unsafe fn many_rows<S: Isa, L: QuantizedLayout>(mut w: *const u8, blocks: usize, x: &QuantizedActivations, first: usize, out: *mut f32) {
    let rows = ROW_TILE.min(x.rows - first);
    let last = L::BLOCK_INPUTS / K_BLOCK - 1;
    // SAFETY: the layout of `QuantizedActivations` and the caller's promise.
    unsafe {
        let out = out.add(first * LANES);
        // Written by a block's first k-block before its later ones read it.
        let mut partial_dots = [const { MaybeUninit::uninit() }; ROW_TILE];
        for r in 0..rows {
            S::store(out.add(r * LANES), S::zero());
        }
        // After the last block, these pointers are beyond the buffers and are not read.
        let (mut q, mut scale, mut sum) = (x.q.as_ptr().add(first * K_BLOCK), x.scales.as_ptr().add(first), x.sums.as_ptr().add(first));
        for _ in 0..blocks {
            prefetch_block::<S, L>(w);
            for k_block in 0..last {
                let ints = L::unpack::<S>(w, k_block);
                for_row_groups!(L, rows, |r, M| {
                    for (r, new) in (r..).zip(&dot_k_block::<S, L, M>(&ints, q.add(r * K_BLOCK))) {
                        let slot = partial_dots.get_unchecked_mut(r);
                        slot.write(if k_block == 0 { *new } else { S::add_i32(slot.assume_init(), *new) });
                    }
                });
                q = q.wrapping_add(x.rows * K_BLOCK);
            }
            let (ints, w_scales) = (L::unpack::<S>(w, last), L::Scales::scale_bias::<S>(w, 0));
            for_row_groups!(L, rows, |r, M| {
                for (r, new) in (r..).zip(&dot_k_block::<S, L, M>(&ints, q.add(r * K_BLOCK))) {
                    let dots = if last == 0 { *new } else { S::add_i32(partial_dots.get_unchecked(r).assume_init(), *new) };
                    let to = out.add(r * LANES);
                    S::store(to, accumulate_block::<S>(S::load(to), dots, w_scales, *scale.add(r), *sum.add(r)));
                }
            });
            q = q.wrapping_add(x.rows * K_BLOCK);
            (scale, sum) = (scale.wrapping_add(x.rows), sum.wrapping_add(x.rows));
            w = w.add(L::BLOCK_BYTES);
        }
    }
}

/// As `many_rows`, for K-quants: dot products and mins are summed as integers over the super-block.
#[inline(always)]
unsafe fn many_rows_k_quant<S: Isa, L: QuantizedLayout>(
    mut w: *const u8,
    blocks: usize,
    x: &QuantizedActivations,
    first: usize,
    out: *mut f32,
) {
    let rows = ROW_TILE.min(x.rows - first);
    let (groups, k_blocks) = (L::BLOCK_INPUTS / L::Scales::GROUP, L::BLOCK_INPUTS / K_BLOCK);
    // SAFETY: the layout of `QuantizedActivations` and the caller's promise.
    unsafe {
        let out = out.add(first * LANES);
        // Written by a block's first k-block before its later ones read it.
        let mut partial_dots = [const { MaybeUninit::uninit() }; ROW_TILE];
        for r in 0..rows {
            S::store(out.add(r * LANES), S::zero());
        }
        // After the last block, these pointers are beyond the buffers and are not read.
        let (mut q, mut scale) = (x.q.as_ptr().add(first * K_BLOCK), x.scales.as_ptr().add(first));
        let mut integer_sum = x.integer_sums.as_ptr().add(first * 2);
        for _ in 0..blocks {
            prefetch_block::<S, L>(w);
            for k_block in 0..k_blocks {
                let ints = L::unpack::<S>(w, k_block);
                for_row_groups!(L, rows, |r, M| {
                    let slots = partial_dots.as_mut_ptr().add(r).cast::<[S::I32x8; M]>();
                    let dots = if k_block == 0 { [S::zero_i32(); M] } else { slots.read() };
                    slots.write(add_scaled_k_block::<S, L, M>(dots, w, k_block, &ints, q.add(r * K_BLOCK)));
                });
                q = q.wrapping_add(x.rows * K_BLOCK);
            }
            let w_scales = L::Scales::super_block_scales::<S>(w);
            let mut w_mins = [S::zero_i32(); 16];
            for (group, min) in w_mins.iter_mut().enumerate().take(groups) {
                *min = L::Scales::sub_block_scales::<S>(w, group).1;
            }
            for r in 0..rows {
                let mut mins = S::zero_i32();
                for pair in 0..groups / 2 {
                    let x_sums = integer_sum.add((pair * x.rows + r) * 2);
                    mins = S::madd2_i16(mins, x_sums, w_mins[pair * 2], w_mins[pair * 2 + 1]);
                }
                let to = out.add(r * LANES);
                let dots = partial_dots.get_unchecked(r).assume_init();
                S::store(to, accumulate_super_block::<S>(S::load(to), dots, mins, w_scales, *scale.add(r)));
            }
            (scale, integer_sum) = (scale.wrapping_add(x.rows), integer_sum.wrapping_add(groups * x.rows));
            w = w.add(L::BLOCK_BYTES);
        }
    }
}

/// Prefetches as much as one block, `PREFETCH_BYTES` ahead of `w`.
#[inline(always)]
unsafe fn prefetch_block<S: Isa, L: QuantizedLayout>(w: *const u8) {
    for line in (0..L::BLOCK_BYTES).step_by(64) {
        // SAFETY: a prefetch accepts any address.
        unsafe { S::prefetch(w.wrapping_add(PREFETCH_BYTES + line)) };
    }
}

/// One row panel times all rows of f32 activations, `[rows][columns]`; `out` is `[row][8]`.
///
/// # Safety
/// The processor has the instruction set. `w` points to `blocks` blocks of the layout; `x` has `rows` rows of as many inputs;
/// `out` has eight floats per row.
#[inline(always)]
pub(super) unsafe fn panel_f32<S: Isa, L: Layout>(w: *const u8, blocks: usize, x: &[f32], rows: usize, out: *mut f32) {
    let columns = blocks * L::BLOCK_INPUTS;
    let mut weights = [0f32; BLOCK_INPUTS_MAX * LANES];
    // SAFETY: no block has more than `BLOCK_INPUTS_MAX` inputs; the rest is the caller's promise.
    unsafe {
        for r in 0..rows {
            S::store(out.add(r * LANES), S::zero());
        }
        for block in 0..blocks {
            L::dequantize_block::<S>(w.add(block * L::BLOCK_BYTES), weights.as_mut_ptr());
            let x = x.as_ptr().add(block * L::BLOCK_INPUTS);
            let mut r = 0;
            while r < rows {
                let (x, out) = (x.add(r * columns), out.add(r * LANES));
                r += match rows - r {
                    1 => rows_f32::<S, L, 1>(&weights, x, columns, out),
                    2 | 3 => rows_f32::<S, L, 2>(&weights, x, columns, out),
                    4 | 5 => rows_f32::<S, L, 4>(&weights, x, columns, out),
                    _ => rows_f32::<S, L, 6>(&weights, x, columns, out),
                };
            }
        }
    }
}

/// Adds to M rows of `out` their products with one dequantized block. Returns M.
#[inline(always)]
unsafe fn rows_f32<S: Isa, L: Layout, const M: usize>(
    weights: &[f32; BLOCK_INPUTS_MAX * LANES],
    x: *const f32,
    columns: usize,
    out: *mut f32,
) -> usize {
    // SAFETY: guaranteed by the caller: M rows of `x` and `out`, and a block of weights.
    unsafe {
        let mut sums = [S::zero(); M];
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = S::load(out.add(r * LANES));
        }
        for i in 0..L::BLOCK_INPUTS {
            let w = S::load(weights.as_ptr().add(i * LANES));
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = S::fma(w, S::splat(*x.add(r * columns + i)), *sums);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            S::store(out.add(r * LANES), *sums);
        }
    }
    M
}
