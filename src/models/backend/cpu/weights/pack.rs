//! Packs a file's weight rows into row panels of eight rows. Packed weights equal the file's weights to the bit, except for MLX's
//! 8-bit weights with scales wider than f16, whose bias is rounded once more.

use super::super::buffer::{Arena, Buffer};
use super::super::isa::{Isa, K_BLOCK, LANES};
use super::super::pool::Pool;
use super::ints::{I8, IntEncoding, U4, U5, U6};
use super::layout::{BLOCK_INPUTS_MAX, Bf16, BlockLayout, F16, F32, FloatLayout, Layout, LayoutKind, QuantizedLayout, with_layout};
use super::scales::{BlockScales, KQuantScale, KQuantScaleMin, ScaleBias, ScaleOnly};
use crate::models::weights::{FloatType, GgmlBlock, Matrix, Quantized};
use crate::models::{Error, Result};

/// A weight of `rows` outputs and `columns` inputs in row panels. The last panel is padded with zero rows.
pub(in super::super) struct Packed {
    pub(in super::super) kind: LayoutKind,
    pub(in super::super) rows: usize,
    pub(in super::super) columns: usize,
    data: Buffer,
}

impl Packed {
    /// # Errors
    /// `Unsupported` if the inputs are not whole k-blocks.
    pub(in super::super) fn new<T: Default + 'static>(matrix: &Matrix<'_>, arena: &mut Arena, pool: &mut Pool<T>) -> Result<Self> {
        let (rows, columns) = matrix.shape();
        if columns % K_BLOCK != 0 {
            return Err(Error::Unsupported(format!("{columns} inputs are not a multiple of {K_BLOCK}")));
        }
        let kind = LayoutKind::of(matrix);
        assert!(columns.is_multiple_of(kind.block_inputs()), "{columns} inputs are not whole blocks");
        let packed = Self { kind, rows, columns, data: arena.allocate_zeroed(Self::bytes(matrix)) };
        pool.run(packed.panels(), &|panel, _| {
            // SAFETY: the panel is inside the buffer, which is initialized, and each task has its own panel, so nothing else
            // accesses these bytes.
            let out = unsafe { std::slice::from_raw_parts_mut(packed.panel_ptr(panel), packed.panel_bytes()) };
            let first = panel * LANES;
            match matrix {
                Matrix::Plain { element: FloatType::F32, data, .. } => pack_float::<4>(out, data, first, (rows, columns)),
                Matrix::Plain { element: FloatType::F16 | FloatType::Bf16, data, .. } => pack_float::<2>(out, data, first, (rows, columns)),
                Matrix::Quantized(_) | Matrix::Blocks { .. } => with_layout!(@quantized kind, L => pack_quantized::<L>(out, matrix, first)),
            }
        });
        Ok(packed)
    }

    /// Bytes that a weight takes when packed.
    pub(in super::super) fn bytes(matrix: &Matrix<'_>) -> usize {
        let ((rows, columns), kind) = (matrix.shape(), LayoutKind::of(matrix));
        let panel = (columns / kind.block_inputs()).checked_mul(kind.block_bytes());
        // Every pointer into a packed weight relies on this size.
        panel.and_then(|panel| panel.checked_mul(rows.div_ceil(LANES))).expect("a weight's size fits in usize")
    }

    pub(in super::super) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Blocks of one panel.
    pub(in super::super) fn blocks(&self) -> usize {
        self.columns / self.kind.block_inputs()
    }

    pub(in super::super) fn panel_bytes(&self) -> usize {
        self.blocks() * self.kind.block_bytes()
    }

    /// The first of the panel's `blocks()` blocks.
    pub(in super::super) fn panel(&self, panel: usize) -> *const u8 {
        self.panel_ptr(panel)
    }

    fn panel_ptr(&self, panel: usize) -> *mut u8 {
        assert!(panel < self.panels(), "panel {panel} of {}", self.panels());
        // SAFETY: the buffer has `panel_bytes()` for each of the panels.
        unsafe { self.data.as_ptr().add(panel * self.panel_bytes()) }
    }

    /// One row as floats, `[columns]`: an embedding.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    pub(in super::super) unsafe fn row<S: Isa>(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns);
        let mut weights = [0f32; BLOCK_INPUTS_MAX * LANES];
        for (block, out) in out.chunks_exact_mut(self.kind.block_inputs()).enumerate() {
            // SAFETY: the block is inside the row's panel, and no block has more than `BLOCK_INPUTS_MAX` inputs.
            unsafe {
                with_layout!(self.kind, L => {
                    L::dequantize_block::<S>(self.panel(row / LANES).add(block * L::BLOCK_BYTES), weights.as_mut_ptr())
                });
            }
            for (i, x) in out.iter_mut().enumerate() {
                *x = weights[i * LANES + row % LANES];
            }
        }
    }
}

impl LayoutKind {
    fn of(matrix: &Matrix<'_>) -> Self {
        match matrix {
            Matrix::Plain { element, .. } => Self::Float(*element),
            Matrix::Quantized(q) => {
                let bits = match q.quantization.bits {
                    2..=4 => 4,
                    5 | 6 => 6,
                    _ => 8,
                };
                Self::Affine { bits, group: q.quantization.group, f32_scales: q.element != FloatType::F16 }
            }
            Matrix::Blocks { block, .. } => match block {
                GgmlBlock::Q4_0 => Self::Q4_0,
                GgmlBlock::Q4_1 => Self::Affine { bits: 4, group: 32, f32_scales: false },
                GgmlBlock::Q5_0 => Self::Q5_0,
                GgmlBlock::Q5_1 => Self::Q5_1,
                GgmlBlock::Q8_0 | GgmlBlock::IQ4_NL => Self::Q8_0,
                GgmlBlock::Q2_K => Self::Q2_K,
                GgmlBlock::Q4_K => Self::Q4_K,
                GgmlBlock::Q5_K => Self::Q5_K,
                GgmlBlock::Q3_K | GgmlBlock::Q6_K => Self::Q6_K,
            },
        }
    }
}

/// Packs up to eight rows, from row `first` on. Lanes beyond the last row stay zero.
fn pack_float<const BYTES: usize>(out: &mut [u8], data: &[u8], first: usize, (rows, columns): (usize, usize)) {
    assert_eq!(data.len(), rows * columns * BYTES);
    let inputs = out.as_chunks_mut::<BYTES>().0.as_chunks_mut::<LANES>().0;
    let rows = data.as_chunks::<BYTES>().0.chunks_exact(columns).take(rows);
    for (lane, row) in rows.skip(first).take(LANES).enumerate() {
        inputs.iter_mut().zip(row).for_each(|(input, element)| input[lane] = *element);
    }
}

/// As `pack_float`, for a quantized weight.
fn pack_quantized<L: QuantizedLayout>(out: &mut [u8], matrix: &Matrix<'_>, first: usize) {
    let (rows, columns) = matrix.shape();
    let lanes = LANES.min(rows - first);
    for (block, out) in out.chunks_exact_mut(L::BLOCK_BYTES).enumerate() {
        let at = |lane: usize| (first + lane) * columns + block * L::BLOCK_INPUTS;
        let (scales, ints) = out.split_at_mut(L::Scales::BYTES);
        for lane in 0..lanes {
            match matrix {
                Matrix::Quantized(q) => pack_affine_scales(scales, q, at(lane) / L::BLOCK_INPUTS, lane),
                Matrix::Blocks { block, data, .. } => {
                    let bytes = block.at(data, at(lane));
                    L::Scales::pack(scales, lane, |group| block.affine(bytes, group));
                }
                Matrix::Plain { .. } => unreachable!("a float weight has no scales"),
            }
        }
        for (k_block, out) in ints.chunks_exact_mut(L::Encoding::BYTES).enumerate() {
            let mut k_groups = [[0; LANES]; 8];
            for lane in 0..lanes {
                let at = at(lane) + k_block * K_BLOCK;
                let integers = match matrix {
                    Matrix::Quantized(q) => affine_integers(q, at),
                    Matrix::Blocks { block, data, .. } => block.integers(block.at(data, at), at % block.elements() / K_BLOCK),
                    Matrix::Plain { .. } => unreachable!("a float weight has no integers"),
                };
                let words = integers.as_chunks::<4>().0;
                k_groups.iter_mut().zip(words).for_each(|(k_group, word)| k_group[lane] = u32::from_le_bytes(*word));
            }
            L::Encoding::pack(&k_groups, out);
        }
    }
}

/// Writes MLX's scale and bias of group `index`, counted over the whole weight.
fn pack_affine_scales(out: &mut [u8], q: &Quantized<'_>, index: usize, lane: usize) {
    for (which, values) in [q.scales, q.biases].into_iter().enumerate() {
        let at = which * LANES + lane;
        if q.element == FloatType::F16 {
            out[at * 2..][..2].copy_from_slice(&values[index * 2..][..2]);
        } else {
            out[at * 4..][..4].copy_from_slice(&q.element.get(values, index).to_le_bytes());
        }
    }
}

/// Integers `first..first + 32` of MLX's little-endian bit stream. 128 is subtracted from 8-bit integers, so that they
/// become signed (the zero point of `ScaleBias`).
fn affine_integers(q: &Quantized<'_>, first: usize) -> [u8; K_BLOCK] {
    let bits = q.quantization.bits;
    let bytes = &q.words[first * bits / 8..][..K_BLOCK * bits / 8];
    match (bits, bytes.as_chunks::<16>().0) {
        (4, [bytes]) => std::array::from_fn(|i| bytes[i / 2] >> (i % 2 * 4) & 15),
        (8, [low, high]) => std::array::from_fn(|i| (if i < 16 { low[i] } else { high[i - 16] }).wrapping_sub(128)),
        _ => std::array::from_fn(|i| {
            let (byte, shift) = (i * bits / 8, i * bits % 8);
            let next = bytes.get(byte + 1).map_or(0, |&next| u16::from(next));
            ((next << 8 | u16::from(bytes[byte])) >> shift & ((1 << bits) - 1)) as u8
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "fits in usize")]
    fn a_weight_whose_size_overflows_is_not_packed() {
        // Both the file's and the packed size wrap to 0, which is what `data` has.
        let matrix = Matrix::Plain { rows: 1 << 57, columns: 32, element: FloatType::F32, data: Vec::new().into() };
        let _ = Packed::new(&matrix, &mut Arena::default(), &mut Pool::new(1));
    }
}
