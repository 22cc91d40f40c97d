//! Weights times activations, for one row and for hundreds.
//!
//! Every output is summed over its inputs in one order, whatever the number of rows: inside a block integers
//! (exact, so any order) or one fused multiply-add per input, then the blocks from first to last.

use super::forms::{Bits, Form, Quantized};
use super::headers::Header;
use super::isa::{Isa, LANES, UNIT};
use super::quants::Quants;
use std::mem::MaybeUninit;

/// Rows of activations that stream past one unit of weights while it is in registers.
const ROWS: usize = 128;
/// How far ahead of the weights' stream to fetch, in bytes, when more than four rows leave time for it. One row reads as
/// fast as memory gives, and fetching ahead only costs it.
const AHEAD: usize = 1024;

/// One slab times all rows of `x`; `out` is `[row][8]`.
///
/// # Safety
/// `w` points to `blocks` blocks, `out` has room, `x` was quantized in the form's grouping.
#[inline(always)]
pub(super) unsafe fn slab_int8<S: Isa, F: Quantized>(w: *const u8, blocks: usize, x: &Quants, out: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        match x.rows {
            1 => few_int8::<S, F, 1>(w, blocks, x, out),
            2 => few_int8::<S, F, 2>(w, blocks, x, out),
            3 => few_int8::<S, F, 3>(w, blocks, x, out),
            4 => few_int8::<S, F, 4>(w, blocks, x, out),
            rows => {
                for first in (0..rows).step_by(ROWS) {
                    if F::Header::TWO_LEVELS {
                        many_two_levels::<S, F>(w, blocks, x, first, out);
                    } else {
                        many_int8::<S, F>(w, blocks, x, first, out);
                    }
                }
            }
        }
    }
}

/// `sums + integers * (weight scale * row scale) + weight bias * row sum`.
#[inline(always)]
unsafe fn flush<S: Isa>(sums: S::F, integers: S::I, w: (S::F, S::F), scale: f32, sum: f32) -> S::F {
    // SAFETY: registers only.
    unsafe {
        let sums = S::fma(S::to_f32(integers), S::mul(w.0, S::splat(scale)), sums);
        S::fma(w.1, S::splat(sum), sums)
    }
}

/// Up to four rows: their sums stay in registers.
#[inline(always)]
unsafe fn few_int8<S: Isa, F: Quantized, const M: usize>(mut w: *const u8, blocks: usize, x: &Quants, out: *mut f32) {
    let group = F::Header::GROUP;
    // SAFETY: the layout of `Quants` and the caller's promise.
    unsafe {
        let mut sums = [S::zero(); M];
        let (mut q, mut scale, mut sum, mut whole) = (x.q.as_ptr(), x.scale.as_ptr(), x.sum.as_ptr(), x.whole.as_ptr());
        for _ in 0..blocks {
            let (mut integers, mut biases) = ([S::zero_i32(); M], [S::zero_i32(); M]);
            for unit in 0..F::BLOCK / UNIT {
                let quants = F::quants::<S>(w, unit);
                if F::Header::TWO_LEVELS {
                    integers = unit_times::<S, F, M>(integers, w, unit, &quants, q);
                    if ((unit + 1) * UNIT).is_multiple_of(2 * group) {
                        let second = (unit + 1) * UNIT / group - 1;
                        let ((_, a), (_, b)) = (F::Header::factors::<S>(w, second - 1), F::Header::factors::<S>(w, second));
                        for (r, biases) in biases.iter_mut().enumerate() {
                            *biases = S::two_times(*biases, whole.add(r * 2), a, b);
                        }
                        whole = whole.add(2 * M);
                    }
                } else {
                    for (integers, new) in integers.iter_mut().zip(&dots::<S, F, M>(&quants, q)) {
                        *integers = S::add_i32(*integers, *new);
                    }
                }
                q = q.add(M * UNIT);
            }
            if F::Header::TWO_LEVELS {
                let tops = F::Header::tops::<S>(w);
                for r in 0..M {
                    sums[r] = flush_two_levels::<S>(sums[r], integers[r], biases[r], tops, *scale.add(r));
                }
            } else {
                let scales = F::Header::scales::<S>(w, 0);
                for r in 0..M {
                    sums[r] = flush::<S>(sums[r], integers[r], scales, *scale.add(r), *sum.add(r));
                }
                sum = sum.add(M);
            }
            scale = scale.add(M);
            w = w.add(F::BYTES);
        }
        for (r, sums) in sums.iter().enumerate() {
            S::store(out.add(r * LANES), *sums);
        }
    }
}

/// A unit's dot products with M rows.
#[inline(always)]
unsafe fn dots<S: Isa, F: Quantized, const M: usize>(w: &[S::B; 8], x: *const i8) -> [S::I; M] {
    // SAFETY: the caller's: a unit of activations a row. The branch is decided when this is compiled.
    unsafe {
        match F::Bits::SUMS {
            0 => S::dots::<0, M>(w, x),
            2 => S::dots::<2, M>(w, x),
            4 => S::dots::<4, M>(w, x),
            _ => S::dots::<8, M>(w, x),
        }
    }
}

/// `sums +` a unit's dot products with M rows, group by group times the group's factor.
#[inline(always)]
unsafe fn unit_times<S: Isa, F: Quantized, const M: usize>(
    sums: [S::I; M],
    w: *const u8,
    unit: usize,
    quants: &[S::B; 8],
    x: *const i8,
) -> [S::I; M] {
    // SAFETY: the caller's: a unit of activations a row.
    unsafe {
        if F::Header::GROUP < UNIT {
            let (first, second) = (F::Header::factors::<S>(w, unit * 2).0, F::Header::factors::<S>(w, unit * 2 + 1).0);
            let sums = dots_times::<S, F, M>(sums, &quants[..4], x, first);
            dots_times::<S, F, M>(sums, &quants[4..], x.add(UNIT / 2), second)
        } else {
            dots_times::<S, F, M>(sums, &quants[..], x, F::Header::factors::<S>(w, unit).0)
        }
    }
}

#[inline(always)]
unsafe fn dots_times<S: Isa, F: Quantized, const M: usize>(sums: [S::I; M], w: &[S::B], x: *const i8, factor: S::I) -> [S::I; M] {
    // SAFETY: the caller's.
    unsafe {
        match F::Bits::SUMS {
            0 => unreachable!("signed bytes have scales of one level"),
            2 => S::dots_times::<2, M>(sums, w, x, factor),
            4 => S::dots_times::<4, M>(sums, w, x, factor),
            _ => S::dots_times::<8, M>(sums, w, x, factor),
        }
    }
}

/// `sums + integers * (weight scale * row scale) + biases * (weight bias * row scale)`.
#[inline(always)]
unsafe fn flush_two_levels<S: Isa>(sums: S::F, integers: S::I, biases: S::I, tops: (S::F, S::F), scale: f32) -> S::F {
    // SAFETY: registers only.
    unsafe {
        let scale = S::splat(scale);
        let sums = S::fma(S::to_f32(integers), S::mul(tops.0, scale), sums);
        S::fma(S::to_f32(biases), S::mul(tops.1, scale), sums)
    }
}

/// Runs `$body` for every row, `$M` of them from `$r` on: two together, of signed integers four if there are as many.
macro_rules! in_groups {
    ($form:ty, $rows:expr, |$r:ident, $M:ident| $body:block) => {
        let mut next = 0;
        if <$form as Quantized>::Bits::SUMS == 0 {
            in_groups!(@by 4, next, $rows, |$r, $M| $body);
        }
        in_groups!(@by 2, next, $rows, |$r, $M| $body);
        in_groups!(@by 1, next, $rows, |$r, $M| $body);
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

/// Rows `first..first + ROWS`: a unit's weights stay in registers, the rows stream past them.
#[inline(always)]
unsafe fn many_int8<S: Isa, F: Quantized>(mut w: *const u8, blocks: usize, x: &Quants, first: usize, out: *mut f32) {
    let rows = ROWS.min(x.rows - first);
    let last = F::BLOCK / UNIT - 1;
    // SAFETY: the layout of `Quants` and the caller's promise.
    unsafe {
        let out = out.add(first * LANES);
        // Written by a block's first unit before its later ones read it.
        let mut integers = [const { MaybeUninit::uninit() }; ROWS];
        for r in 0..rows {
            S::store(out.add(r * LANES), S::zero());
        }
        // The last steps lead beyond the ends, and nothing is read there.
        let (mut q, mut scale, mut sum) = (x.q.as_ptr().add(first * UNIT), x.scale.as_ptr().add(first), x.sum.as_ptr().add(first));
        for _ in 0..blocks {
            prefetch::<S, F>(w);
            for unit in 0..last {
                let quants = F::quants::<S>(w, unit);
                in_groups!(F, rows, |r, M| {
                    for (r, new) in (r..).zip(&dots::<S, F, M>(&quants, q.add(r * UNIT))) {
                        let slot = integers.get_unchecked_mut(r);
                        slot.write(if unit == 0 { *new } else { S::add_i32(slot.assume_init(), *new) });
                    }
                });
                q = q.wrapping_add(x.rows * UNIT);
            }
            let (quants, scales) = (F::quants::<S>(w, last), F::Header::scales::<S>(w, 0));
            in_groups!(F, rows, |r, M| {
                for (r, new) in (r..).zip(&dots::<S, F, M>(&quants, q.add(r * UNIT))) {
                    let all = if last == 0 { *new } else { S::add_i32(integers.get_unchecked(r).assume_init(), *new) };
                    let to = out.add(r * LANES);
                    S::store(to, flush::<S>(S::load(to), all, scales, *scale.add(r), *sum.add(r)));
                }
            });
            q = q.wrapping_add(x.rows * UNIT);
            (scale, sum) = (scale.wrapping_add(x.rows), sum.wrapping_add(x.rows));
            w = w.add(F::BYTES);
        }
    }
}

/// As `many_int8`, of blocks of two levels: integers and biases are summed over the block before they become floats.
#[inline(always)]
unsafe fn many_two_levels<S: Isa, F: Quantized>(mut w: *const u8, blocks: usize, x: &Quants, first: usize, out: *mut f32) {
    let rows = ROWS.min(x.rows - first);
    let (groups, units) = (F::BLOCK / F::Header::GROUP, F::BLOCK / UNIT);
    // SAFETY: the layout of `Quants` and the caller's promise.
    unsafe {
        let out = out.add(first * LANES);
        // Written by a block's first unit before its later ones read it.
        let mut integers = [const { MaybeUninit::uninit() }; ROWS];
        for r in 0..rows {
            S::store(out.add(r * LANES), S::zero());
        }
        // The last steps lead beyond the ends, and nothing is read there.
        let (mut q, mut scale) = (x.q.as_ptr().add(first * UNIT), x.scale.as_ptr().add(first));
        let mut whole = x.whole.as_ptr().add(first * 2);
        for _ in 0..blocks {
            prefetch::<S, F>(w);
            for unit in 0..units {
                let quants = F::quants::<S>(w, unit);
                in_groups!(F, rows, |r, M| {
                    let slots = integers.as_mut_ptr().add(r).cast::<[S::I; M]>();
                    let sums = if unit == 0 { [S::zero_i32(); M] } else { slots.read() };
                    slots.write(unit_times::<S, F, M>(sums, w, unit, &quants, q.add(r * UNIT)));
                });
                q = q.wrapping_add(x.rows * UNIT);
            }
            let tops = F::Header::tops::<S>(w);
            let mut factors = [S::zero_i32(); 16];
            for (group, factor) in factors.iter_mut().enumerate().take(groups) {
                *factor = F::Header::factors::<S>(w, group).1;
            }
            for r in 0..rows {
                let mut biases = S::zero_i32();
                for pair in 0..groups / 2 {
                    let sums = whole.add((pair * x.rows + r) * 2);
                    biases = S::two_times(biases, sums, factors[pair * 2], factors[pair * 2 + 1]);
                }
                let to = out.add(r * LANES);
                let integers = integers.get_unchecked(r).assume_init();
                S::store(to, flush_two_levels::<S>(S::load(to), integers, biases, tops, *scale.add(r)));
            }
            (scale, whole) = (scale.wrapping_add(x.rows), whole.wrapping_add(groups * x.rows));
            w = w.add(F::BYTES);
        }
    }
}

/// Brings the blocks that follow near.
#[inline(always)]
unsafe fn prefetch<S: Isa, F: Quantized>(w: *const u8) {
    for line in (0..F::BYTES).step_by(64) {
        // SAFETY: any address will do.
        unsafe { S::prefetch(w.wrapping_add(AHEAD + line)) };
    }
}

/// Inputs of the largest block.
pub(super) const TILE: usize = 256;

/// One slab times all rows of f32 activations, `[rows][columns]`; `out` is `[row][8]`.
///
/// # Safety
/// As `slab_int8`; `x` has `rows * columns` floats.
#[inline(always)]
pub(super) unsafe fn slab_f32<S: Isa, F: Form>(w: *const u8, blocks: usize, x: &[f32], rows: usize, out: *mut f32) {
    let columns = blocks * F::BLOCK;
    let mut tile = [0f32; TILE * LANES];
    // SAFETY: the largest block has `TILE` inputs; the rest is the caller's promise.
    unsafe {
        for r in 0..rows {
            S::store(out.add(r * LANES), S::zero());
        }
        for block in 0..blocks {
            F::tile::<S>(w.add(block * F::BYTES), tile.as_mut_ptr());
            let x = x.as_ptr().add(block * F::BLOCK);
            let mut r = 0;
            while r < rows {
                let (x, out) = (x.add(r * columns), out.add(r * LANES));
                r += match rows - r {
                    1 => tile_f32::<S, F, 1>(&tile, x, columns, out),
                    2 | 3 => tile_f32::<S, F, 2>(&tile, x, columns, out),
                    4 | 5 => tile_f32::<S, F, 4>(&tile, x, columns, out),
                    _ => tile_f32::<S, F, 6>(&tile, x, columns, out),
                };
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_f32<S: Isa, F: Form, const M: usize>(tile: &[f32; TILE * LANES], x: *const f32, columns: usize, out: *mut f32) -> usize {
    // SAFETY: the caller's: M rows of x and out, BLOCK inputs of the tile.
    unsafe {
        let mut sums = [S::zero(); M];
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = S::load(out.add(r * LANES));
        }
        for i in 0..F::BLOCK {
            let w = S::load(tile.as_ptr().add(i * LANES));
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
