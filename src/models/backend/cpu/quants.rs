//! Activations in eight bits.

use super::forms::Grouping;
use super::isa::{Isa, LANES, UNIT};

/// `q` is `[unit][row][32]` and `scale` is `[span][row]`. Of each group, `sum` is
/// `[group][row]`: the scale times the sum of its integers, which the weights' biases multiply; or `whole` is
/// `[pair of groups][row][2]`: the sums themselves.
#[derive(Default)]
pub(super) struct Quants {
    pub(super) rows: usize,
    pub(super) q: Vec<i8>,
    pub(super) scale: Vec<f32>,
    pub(super) sum: Vec<f32>,
    pub(super) whole: Vec<i16>,
}

impl Quants {
    pub(super) fn resize(&mut self, rows: usize, columns: usize, grouping: Grouping) {
        self.rows = rows;
        let sums = rows * columns / grouping.group;
        self.q.resize(rows * columns, 0);
        self.scale.resize(rows * columns / grouping.span, 0.0);
        self.sum.resize(if grouping.whole { 0 } else { sums }, 0.0);
        self.whole.resize(if grouping.whole { sums } else { 0 }, 0);
    }

    pub(super) fn out(&mut self) -> QuantsOut {
        let Self { rows, q, scale, sum, whole } = self;
        QuantsOut { rows: *rows, q: q.as_mut_ptr(), scale: scale.as_mut_ptr(), sum: sum.as_mut_ptr(), whole: whole.as_mut_ptr() }
    }
}

/// Where `quantize` writes: `Quants` by pointer, because several threads fill rows of one.
#[derive(Clone, Copy)]
pub(super) struct QuantsOut {
    rows: usize,
    q: *mut i8,
    scale: *mut f32,
    sum: *mut f32,
    whole: *mut i16,
}

// SAFETY: rows are disjoint; each is written by one thread.
unsafe impl Sync for QuantsOut {}

/// Row `row` in eight bits: scale = largest / 127 per span, rounded to nearest even. What is not a number counts as the
/// least, and a span with an infinite one has an infinite scale.
///
/// # Safety
/// `out` has room for `row`; `x` has whole spans.
#[inline(always)]
pub(super) unsafe fn quantize<S: Isa>(x: &[f32], row: usize, grouping: Grouping, out: QuantsOut) {
    let (Grouping { span, group, whole }, rows) = (grouping, out.rows);
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
                let scaled = S::max(S::mul(factor, S::load(x.as_ptr().add(i))), S::splat(-127.0));
                total = S::add_i32(total, S::store_i8(q, scaled));
                if !(at + LANES).is_multiple_of(group) {
                    continue;
                }
                let (group, sum) = (at / group, S::sum_i32(total));
                total = S::zero_i32();
                if whole {
                    *out.whole.add((group / 2 * rows + row) * 2 + group % 2) = sum as i16;
                } else {
                    *out.sum.add(group * rows + row) = scale * sum as f32;
                }
            }
        }
    }
}
