//! Weights times activations, for one row and for hundreds.
//!
//! Every output is summed over its inputs in one order, whatever the number of rows: inside a block integers
//! (exact, so any order) or one fused multiply-add per input, then the blocks from first to last.

use super::forms::{Form, Quantized, units};
use super::isa::{Isa, LANES, UNIT};

/// Rows of activations that stream past one block of weights while it is in registers.
const ROWS: usize = 128;

/// Activations in eight bits. `q` is `[unit][row][32]`, `scale` and `sum` are `[group][row]`; `sum` is the
/// scale times the sum of the group's integers, which the weights' biases multiply. A group of 16 fills half a unit,
/// and zeros the other half.
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
        self.q.resize(rows * columns / group * units(group) * UNIT, 0);
        self.scale.resize(rows * columns / group, 0.0);
        self.sum.resize(rows * columns / group, 0.0);
    }
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

/// Row `row` in eight bits: scale = largest / 127 per group, rounded to nearest even.
///
/// # Safety
/// `out` has room for `row`; `x` has whole groups.
#[inline(always)]
pub(super) unsafe fn quantize<S: Isa>(x: &[f32], row: usize, group: usize, out: QuantsOut) {
    let units = units(group);
    // SAFETY: indices follow the layout of `Quants`.
    unsafe {
        for (g, x) in x.chunks_exact(group).enumerate() {
            let mut top = S::zero();
            for i in (0..group).step_by(LANES) {
                top = S::max(S::abs(S::load(x.as_ptr().add(i))), top);
            }
            let top = super::isa::largest::<S>(top);
            // A group of zeros or denormals must not divide.
            let (inverse, scale) = if top > 1e-30 { (127.0 / top, top / 127.0) } else { (0.0, 0.0) };
            let factor = S::splat(inverse);
            let mut total = 0i32;
            for unit in 0..units {
                let q = out.q.add(((g * units + unit) * out.rows + row) * UNIT);
                let filled = UNIT.min(group);
                for i in (0..filled).step_by(LANES) {
                    S::store_i8(q.add(i), S::mul(factor, S::load(x.as_ptr().add(unit * UNIT + i))));
                }
                q.add(filled).write_bytes(0, UNIT - filled);
                for i in 0..UNIT {
                    total += i32::from(*q.add(i));
                }
            }
            *out.scale.add(g * out.rows + row) = scale;
            *out.sum.add(g * out.rows + row) = scale * total as f32;
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

#[inline(always)]
unsafe fn dot<S: Isa, F: Quantized>(w: &[S::B; 8], x: *const i8) -> S::I {
    // SAFETY: the caller's.
    unsafe { if F::SIGNED { S::dot::<true>(w, x) } else { S::dot::<false>(w, x) } }
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
            for unit in 0..units(F::GROUP) {
                let quants = F::quants::<S>(w, unit);
                for (r, integers) in integers.iter_mut().enumerate() {
                    *integers = S::add_i32(*integers, dot::<S, F>(&quants, q.add(r * UNIT)));
                }
                q = q.add(M * UNIT);
            }
            let scales = F::scales::<S>(w);
            for r in 0..M {
                sums[r] = flush::<S>(sums[r], integers[r], scales, *scale.add(r), *sum.add(r));
            }
            (scale, sum) = (scale.add(M), sum.add(M));
            w = w.add(F::BYTES);
        }
        for (r, sums) in sums.iter().enumerate() {
            S::store(out.add(r * LANES), *sums);
        }
    }
}

/// Rows `first..first + ROWS`: a unit's weights stay in registers, the rows stream past them.
#[inline(always)]
unsafe fn many_int8<S: Isa, F: Quantized>(mut w: *const u8, blocks: usize, x: &Quants, first: usize, out: *mut f32) {
    let rows = ROWS.min(x.rows - first);
    // SAFETY: the layout of `Quants` and the caller's promise.
    unsafe {
        let out = out.add(first * LANES);
        let mut integers = [S::zero_i32(); ROWS];
        for r in 0..rows {
            S::store(out.add(r * LANES), S::zero());
        }
        let (mut q, mut scale, mut sum) = (x.q.as_ptr().add(first * UNIT), x.scale.as_ptr().add(first), x.sum.as_ptr().add(first));
        let units = units(F::GROUP);
        for _ in 0..blocks {
            for unit in 0..units - 1 {
                let quants = F::quants::<S>(w, unit);
                for r in 0..rows {
                    let new = dot::<S, F>(&quants, q.add(r * UNIT));
                    let slot = integers.get_unchecked_mut(r);
                    *slot = if unit == 0 { new } else { S::add_i32(*slot, new) };
                }
                q = q.add(x.rows * UNIT);
            }
            let quants = F::quants::<S>(w, units - 1);
            let scales = F::scales::<S>(w);
            for r in 0..rows {
                let new = dot::<S, F>(&quants, q.add(r * UNIT));
                let all = if units == 1 { new } else { S::add_i32(*integers.get_unchecked(r), new) };
                let to = out.add(r * LANES);
                S::store(to, flush::<S>(S::load(to), all, scales, *scale.add(r), *sum.add(r)));
            }
            q = q.add(x.rows * UNIT);
            (scale, sum) = (scale.add(x.rows), sum.add(x.rows));
            w = w.add(F::BYTES);
        }
    }
}

/// One slab times all rows of f32 activations, `[rows][columns]`; `out` is `[row][8]`.
///
/// # Safety
/// As `slab_int8`; `x` has `rows * columns` floats.
#[inline(always)]
pub(super) unsafe fn slab_f32<S: Isa, F: Form>(w: *const u8, blocks: usize, x: &[f32], rows: usize, out: *mut f32) {
    let columns = blocks * F::GROUP;
    let mut tile = [0f32; 128 * LANES];
    // SAFETY: the largest group has 128 inputs; the rest is the caller's promise.
    unsafe {
        for r in 0..rows {
            S::store(out.add(r * LANES), S::zero());
        }
        for block in 0..blocks {
            F::tile::<S>(w.add(block * F::BYTES), tile.as_mut_ptr());
            let x = x.as_ptr().add(block * F::GROUP);
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
unsafe fn tile_f32<S: Isa, F: Form, const M: usize>(tile: &[f32; 128 * LANES], x: *const f32, columns: usize, out: *mut f32) -> usize {
    // SAFETY: the caller's: M rows of x and out, GROUP inputs of the tile.
    unsafe {
        let mut sums = [S::zero(); M];
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = S::load(out.add(r * LANES));
        }
        for i in 0..F::GROUP {
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
