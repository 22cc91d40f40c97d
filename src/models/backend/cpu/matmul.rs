//! Weights times activations, for one row and for hundreds.
//!
//! Every output is summed over its inputs in one order, whatever the number of rows: inside a block integers
//! (exact, so any order) or one fused multiply-add per input, then the blocks from first to last.

use super::forms::{Bits, Form, Quantized};
use super::isa::{Isa, LANES, UNIT};
use std::mem::MaybeUninit;

/// Rows of activations that stream past one unit of weights while it is in registers.
const ROWS: usize = 128;
/// How far ahead of the weights' stream to fetch, in bytes, when several rows leave time for it. One row reads as fast
/// as memory gives, and fetching ahead only costs it.
const AHEAD: usize = 1024;

/// Activations in eight bits. `q` is `[unit][row][32]`, `scale` is `[span][row]` and `sum` is `[group][row]`: the scale
/// times the sum of the group's integers, which the weights' biases multiply. A span shares a scale: it is a group,
/// or two groups of 16.
#[derive(Default)]
pub(super) struct Quants {
    pub(super) rows: usize,
    pub(super) q: Vec<i8>,
    pub(super) scale: Vec<f32>,
    pub(super) sum: Vec<f32>,
}

impl Quants {
    pub(super) fn resize(&mut self, rows: usize, columns: usize, group: usize) {
        self.rows = rows;
        self.q.resize(rows * columns, 0);
        self.scale.resize(rows * columns / span(group), 0.0);
        self.sum.resize(rows * columns / group, 0.0);
    }
}

const fn span(group: usize) -> usize {
    if group < UNIT { UNIT } else { group }
}

/// Where `quantize` writes: `Quants` by pointer, because several threads fill rows of one.
#[derive(Clone, Copy)]
pub(super) struct QuantsOut {
    pub(super) rows: usize,
    pub(super) q: *mut i8,
    pub(super) scale: *mut f32,
    pub(super) sum: *mut f32,
}

// SAFETY: rows are disjoint; each is written by one thread.
unsafe impl Sync for QuantsOut {}

/// Row `row` in eight bits: scale = largest / 127 per span, rounded to nearest even.
///
/// # Safety
/// `out` has room for `row`; `x` has whole spans.
#[inline(always)]
pub(super) unsafe fn quantize<S: Isa>(x: &[f32], row: usize, group: usize, out: QuantsOut) {
    let (span, rows) = (span(group), out.rows);
    // SAFETY: indices follow the layout of `Quants`.
    unsafe {
        for (index, x) in x.chunks_exact(span).enumerate() {
            let mut top = S::zero();
            for i in (0..span).step_by(LANES) {
                top = S::max(S::abs(S::load(x.as_ptr().add(i))), top);
            }
            let top = S::largest(top);
            // A span of zeros or denormals must not divide.
            let (inverse, scale) = if top > 1e-30 { (127.0 / top, top / 127.0) } else { (0.0, 0.0) };
            *out.scale.add(index * rows + row) = scale;
            let factor = S::splat(inverse);
            let mut total = S::zero_i32();
            for i in (0..span).step_by(LANES) {
                let at = index * span + i;
                let q = out.q.add((at / UNIT * rows + row) * UNIT + at % UNIT);
                total = S::add_i32(total, S::store_i8(q, S::mul(factor, S::load(x.as_ptr().add(i)))));
                if (at + LANES) % group == 0 {
                    *out.sum.add(at / group * rows + row) = scale * S::sum_i32(total) as f32;
                    total = S::zero_i32();
                }
            }
        }
    }
}

/// One slab times all rows of `x`; `out` is `[row][8]`.
///
/// # Safety
/// `w` points to `blocks` blocks, `out` has room, `x` was quantized in groups of `F::GROUP`.
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
                let mut first = 0;
                while first < rows {
                    many_int8::<S, F>(w, blocks, x, first, out);
                    first += ROWS;
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
    // SAFETY: the layout of `Quants` and the caller's promise.
    unsafe {
        let mut sums = [S::zero(); M];
        let (mut q, mut scale, mut sum) = (x.q.as_ptr(), x.scale.as_ptr(), x.sum.as_ptr());
        for _ in 0..blocks {
            let mut integers = [S::zero_i32(); M];
            for unit in 0..F::BLOCK / UNIT {
                let quants = F::quants::<S>(w, unit);
                if F::GROUP < UNIT {
                    for half in 0..2 {
                        let scales = F::scales::<S>(w, unit * 2 + half);
                        for r in 0..M {
                            let integers = half_dot::<S, F>(&quants, half, q.add(r * UNIT));
                            sums[r] = flush::<S>(sums[r], integers, scales, *scale.add(r), *sum.add(r));
                        }
                        sum = sum.add(M);
                    }
                    scale = scale.add(M);
                } else {
                    for (r, integers) in integers.iter_mut().enumerate() {
                        *integers = S::add_i32(*integers, dot::<S, F>(&quants, q.add(r * UNIT)));
                    }
                    if (unit + 1) * UNIT % F::GROUP == 0 {
                        let scales = F::scales::<S>(w, unit * UNIT / F::GROUP);
                        for r in 0..M {
                            sums[r] = flush::<S>(sums[r], integers[r], scales, *scale.add(r), *sum.add(r));
                        }
                        integers = [S::zero_i32(); M];
                        (scale, sum) = (scale.add(M), sum.add(M));
                    }
                }
                q = q.add(M * UNIT);
            }
            w = w.add(F::BYTES);
        }
        for (r, sums) in sums.iter().enumerate() {
            S::store(out.add(r * LANES), *sums);
        }
    }
}

#[inline(always)]
unsafe fn dot<S: Isa, F: Quantized>(w: &[S::B; 8], x: *const i8) -> S::I {
    // SAFETY: the caller's: a unit of activations. The branch is decided when this is compiled.
    unsafe {
        match F::Bits::SUMS {
            0 => S::dot::<0>(w, x),
            2 => S::dot::<2>(w, x),
            4 => S::dot::<4>(w, x),
            _ => S::dot::<8>(w, x),
        }
    }
}

#[inline(always)]
unsafe fn half_dot<S: Isa, F: Quantized>(w: &[S::B; 8], half: usize, x: *const i8) -> S::I {
    // SAFETY: the caller's: a unit of activations.
    unsafe {
        let (w, x) = (&w[half * 4..half * 4 + 4], x.add(half * UNIT / 2));
        if F::Bits::SUMS < 4 { S::dot::<2>(w, x) } else { S::dot::<4>(w, x) }
    }
}

/// Rows `first..first + ROWS`: a unit's weights stay in registers, the rows stream past them.
#[inline(always)]
unsafe fn many_int8<S: Isa, F: Quantized>(mut w: *const u8, blocks: usize, x: &Quants, first: usize, out: *mut f32) {
    let rows = ROWS.min(x.rows - first);
    // SAFETY: the layout of `Quants` and the caller's promise.
    unsafe {
        let out = out.add(first * LANES);
        // Written by a group's first unit before its later ones read it.
        let mut integers = [const { MaybeUninit::uninit() }; ROWS];
        for r in 0..rows {
            S::store(out.add(r * LANES), S::zero());
        }
        let (mut q, mut scale, mut sum) = (x.q.as_ptr().add(first * UNIT), x.scale.as_ptr().add(first), x.sum.as_ptr().add(first));
        for _ in 0..blocks {
            for line in (0..F::BYTES).step_by(64) {
                S::prefetch(w.wrapping_add(AHEAD + line));
            }
            for unit in 0..F::BLOCK / UNIT {
                let quants = F::quants::<S>(w, unit);
                if F::GROUP < UNIT {
                    let (low, high) = (F::scales::<S>(w, unit * 2), F::scales::<S>(w, unit * 2 + 1));
                    for r in 0..rows {
                        let (to, q) = (out.add(r * LANES), q.add(r * UNIT));
                        let (a, b) = (half_dot::<S, F>(&quants, 0, q), half_dot::<S, F>(&quants, 1, q));
                        let sums = flush::<S>(S::load(to), a, low, *scale.add(r), *sum.add(r));
                        S::store(to, flush::<S>(sums, b, high, *scale.add(r), *sum.add(x.rows + r)));
                    }
                    (scale, sum) = (scale.add(x.rows), sum.add(2 * x.rows));
                } else if (unit + 1) * UNIT % F::GROUP == 0 {
                    let scales = F::scales::<S>(w, unit * UNIT / F::GROUP);
                    for r in 0..rows {
                        let new = dot::<S, F>(&quants, q.add(r * UNIT));
                        let all = if F::GROUP == UNIT { new } else { S::add_i32(integers.get_unchecked(r).assume_init(), new) };
                        let to = out.add(r * LANES);
                        S::store(to, flush::<S>(S::load(to), all, scales, *scale.add(r), *sum.add(r)));
                    }
                    (scale, sum) = (scale.add(x.rows), sum.add(x.rows));
                } else {
                    for r in 0..rows {
                        let new = dot::<S, F>(&quants, q.add(r * UNIT));
                        let slot = integers.get_unchecked_mut(r);
                        slot.write(if unit == 0 { new } else { S::add_i32(slot.assume_init(), new) });
                    }
                }
                q = q.add(x.rows * UNIT);
            }
            w = w.add(F::BYTES);
        }
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
