//! Activations quantized to eight bits.

use super::super::isa::{Isa, K_BLOCK, LANES};
use super::super::weights::layout::ActivationQuant;

/// Rows of activations as signed bytes in -127..=127, symmetric: `x = q * scale`.
///
/// The row is the second index of every array, so that a kernel reads one k-block (32 columns) of all rows in sequence.
#[derive(Default)]
pub(in super::super) struct QuantizedActivations {
    pub(in super::super) rows: usize,
    /// `[k-block][row][32]`.
    pub(in super::super) q: Vec<i8>,
    /// `[scale group][row]`.
    pub(in super::super) scales: Vec<f32>,
    /// `[sum group][row]`: the sum of the group's dequantized activations, which is multiplied by a weight's bias. Empty if
    /// sums are integers.
    pub(in super::super) sums: Vec<f32>,
    /// `[pair of sum groups][row][2]`: the sum of the group's integers. Empty unless sums are integers.
    pub(in super::super) integer_sums: Vec<i16>,
}

impl QuantizedActivations {
    /// Makes room for `rows` rows of `columns` inputs.
    pub(in super::super) fn resize(&mut self, rows: usize, columns: usize, quant: ActivationQuant) {
        let ActivationQuant { scale_group, sum_group, integer_sums } = quant;
        assert!(columns.is_multiple_of(scale_group) && columns.is_multiple_of(K_BLOCK), "{columns} inputs are not whole groups");
        self.rows = rows;
        let sums = rows * columns / sum_group;
        self.q.resize(rows * columns, 0);
        self.scales.resize(rows * columns / scale_group, 0.0);
        self.sums.resize(if integer_sums { 0 } else { sums }, 0.0);
        self.integer_sums.resize(if integer_sums { sums } else { 0 }, 0);
    }

    pub(in super::super) fn writer(&mut self) -> ActivationWriter {
        let Self { rows, q, scales, sums, integer_sums } = self;
        let (q, scales, sums, integer_sums) = (q.as_mut_ptr(), scales.as_mut_ptr(), sums.as_mut_ptr(), integer_sums.as_mut_ptr());
        ActivationWriter { rows: *rows, q, scales, sums, integer_sums }
    }
}

/// Pointers to the memory of `QuantizedActivations`, because several threads write its rows at a time.
#[derive(Clone, Copy)]
pub(in super::super) struct ActivationWriter {
    rows: usize,
    q: *mut i8,
    scales: *mut f32,
    sums: *mut f32,
    integer_sums: *mut i16,
}

// SAFETY: rows are disjoint; each is written by one thread.
unsafe impl Sync for ActivationWriter {}

/// Quantizes row `row`, symmetric: `scale = max |x| / 127` per scale group, `q` rounded to nearest even.
///
/// NaN becomes -127. A group with an infinity gets an infinite scale.
///
/// # Safety
/// The processor has the instruction set; `out` was resized for `quant`, for more than `row` rows, and for `x.len()` columns;
/// nothing else accesses the row.
#[inline(always)]
pub(super) unsafe fn quantize<S: Isa>(x: &[f32], row: usize, quant: ActivationQuant, out: ActivationWriter) {
    let (ActivationQuant { scale_group, sum_group, integer_sums }, rows) = (quant, out.rows);
    // SAFETY: indices follow the layout of `QuantizedActivations`.
    unsafe {
        for (index, x) in x.chunks_exact(scale_group).enumerate() {
            let mut max_abs = S::zero();
            for i in (0..scale_group).step_by(LANES) {
                max_abs = S::max(S::abs(S::load(x.as_ptr().add(i))), max_abs);
            }
            let max_abs = S::reduce_max(max_abs);
            // A group of zeros or denormals has scale 0, so that nothing is divided by 0.
            let (inverse, scale) = if max_abs > 1e-30 { (127.0 / max_abs, max_abs / 127.0) } else { (0.0, 0.0) };
            *out.scales.add(index * rows + row) = scale;
            let inverse = S::splat(inverse);
            let mut total = S::zero_i32();
            for i in (0..scale_group).step_by(LANES) {
                let at = index * scale_group + i;
                let q = out.q.add((at / K_BLOCK * rows + row) * K_BLOCK + at % K_BLOCK);
                let scaled = S::max(S::mul(inverse, S::load(x.as_ptr().add(i))), S::splat(-127.0));
                total = S::add_i32(total, S::round_and_store_i8(q, scaled));
                if !(at + LANES).is_multiple_of(sum_group) {
                    continue;
                }
                let (group, sum) = (at / sum_group, S::reduce_sum_i32(total));
                total = S::zero_i32();
                if integer_sums {
                    *out.integer_sums.add((group / 2 * rows + row) * 2 + group % 2) = sum as i16;
                } else {
                    *out.sums.add(group * rows + row) = scale * sum as f32;
                }
            }
        }
    }
}
