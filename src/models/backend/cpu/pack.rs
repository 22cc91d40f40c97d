//! From a file's rows to slabs of eight: exact, so that a packed weight is the file's weight to the bit (but for MLX's eight
//! bits with scales wider than f16, whose bias is rounded once more).

use super::Scratch;
use super::buffer::{Arena, Buffer};
use super::forms::{self, Bf16, Bits, Bytes, F16, F32, Fives, Form, Kind, Nibbles, Packing, Plain, Sixes, with_form};
use super::headers::{Factors, Header, Pair, Scale, SignedFactors};
use super::isa::{Isa, LANES, UNIT};
use super::matmul::TILE;
use super::pool::Pool;
use crate::models::weights::{Block, Element, Matrix, Quantized};
use crate::models::{Error, Result};

/// A weight of `rows` outputs and `columns` inputs in slabs; rows are padded with zeros to whole slabs.
pub(super) struct Packed {
    pub(super) kind: Kind,
    pub(super) rows: usize,
    pub(super) columns: usize,
    data: Buffer,
}

impl Packed {
    pub(super) fn new(matrix: &Matrix<'_>, arena: &mut Arena, pool: &mut Pool<Scratch>) -> Result<Self> {
        let (rows, columns) = matrix.shape();
        if columns % UNIT != 0 {
            return Err(Error::Unsupported(format!("{columns} inputs are not a multiple of {UNIT}")));
        }
        let kind = Kind::of(matrix);
        let packed = Self { kind, rows, columns, data: arena.zeroed(Self::bytes(matrix)) };
        pool.run(packed.slabs(), &|slab, _| {
            // SAFETY: each piece has its own slab, so no two threads share a byte of this exclusive slice.
            let out = unsafe { std::slice::from_raw_parts_mut(packed.slab(slab).cast_mut(), packed.slab_bytes()) };
            let first = slab * LANES;
            match matrix {
                Matrix::Plain { element: Element::F32, data, .. } => pack_plain::<4>(out, data, first, (rows, columns)),
                Matrix::Plain { element: Element::F16 | Element::Bf16, data, .. } => pack_plain::<2>(out, data, first, (rows, columns)),
                Matrix::Quantized(_) | Matrix::Blocks { .. } => with_form!(@quantized kind, F => pack::<F>(out, matrix, first)),
            }
        });
        Ok(packed)
    }

    /// Bytes that a weight takes when packed.
    pub(super) fn bytes(matrix: &Matrix<'_>) -> usize {
        let ((rows, columns), kind) = (matrix.shape(), Kind::of(matrix));
        rows.div_ceil(LANES) * (columns / kind.block() * kind.block_bytes())
    }

    pub(super) fn slabs(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    pub(super) fn blocks(&self) -> usize {
        self.columns / self.kind.block()
    }

    pub(super) fn slab_bytes(&self) -> usize {
        self.blocks() * self.kind.block_bytes()
    }

    pub(super) fn slab(&self, slab: usize) -> *const u8 {
        debug_assert!(slab < self.slabs());
        self.data.as_ptr().wrapping_add(slab * self.slab_bytes())
    }

    /// One row as floats: an embedding.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    pub(super) unsafe fn row<S: Isa>(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns);
        let mut tile = [0f32; TILE * LANES];
        for (block, out) in out.chunks_exact_mut(self.kind.block()).enumerate() {
            // SAFETY: the block is inside the row's slab, and the largest has `TILE` inputs.
            unsafe { with_form!(self.kind, F => F::tile::<S>(self.slab(row / LANES).add(block * F::BYTES), tile.as_mut_ptr())) };
            for (i, x) in out.iter_mut().enumerate() {
                *x = tile[i * LANES + row % LANES];
            }
        }
    }
}

impl Kind {
    fn of(matrix: &Matrix<'_>) -> Self {
        match matrix {
            Matrix::Plain { element, .. } => Self::Plain(*element),
            Matrix::Quantized(q) => {
                let bits = match q.quantization.bits {
                    2..=4 => 4,
                    5 | 6 => 6,
                    _ => 8,
                };
                Self::Affine { bits, group: q.quantization.group, wide: q.element != Element::F16 }
            }
            Matrix::Blocks { block, .. } => match block {
                Block::Q4_0 => Self::Q4_0,
                Block::Q4_1 => Self::Q4_1,
                Block::Q5_0 => Self::Q5_0,
                Block::Q5_1 => Self::Q5_1,
                Block::Q8_0 | Block::IQ4_NL => Self::Q8_0,
                Block::Q2_K => Self::Q2_K,
                Block::Q4_K => Self::Q4_K,
                Block::Q5_K => Self::Q5_K,
                Block::Q3_K | Block::Q6_K => Self::Q6_K,
            },
        }
    }
}

/// The rows from `first`, eight of them or all that are left; the others stay zero.
fn pack_plain<const BYTES: usize>(out: &mut [u8], data: &[u8], first: usize, (rows, columns): (usize, usize)) {
    assert_eq!(data.len(), rows * columns * BYTES);
    let inputs = out.as_chunks_mut::<BYTES>().0.as_chunks_mut::<LANES>().0;
    let rows = data.as_chunks::<BYTES>().0.chunks_exact(columns).take(rows);
    for (lane, row) in rows.skip(first).take(LANES).enumerate() {
        inputs.iter_mut().zip(row).for_each(|(input, element)| input[lane] = *element);
    }
}

/// As `pack_plain`, of integers.
fn pack<F: forms::Quantized>(out: &mut [u8], matrix: &Matrix<'_>, first: usize) {
    let (rows, columns) = matrix.shape();
    let lanes = LANES.min(rows - first);
    for (block, out) in out.chunks_exact_mut(F::BYTES).enumerate() {
        let at = |lane: usize| (first + lane) * columns + block * F::BLOCK;
        let (header, body) = out.split_at_mut(F::Header::BYTES);
        for lane in 0..lanes {
            match matrix {
                Matrix::Quantized(q) => pack_pair(header, q, at(lane) / F::BLOCK, lane),
                Matrix::Blocks { block, data, .. } => {
                    let bytes = block.at(data, at(lane));
                    F::Header::pack(header, lane, |group| block.affine(bytes, group));
                }
                Matrix::Plain { .. } => unreachable!("has no integers"),
            }
        }
        for (unit, out) in body.chunks_exact_mut(F::Bits::BYTES).enumerate() {
            let mut steps = [[0; LANES]; 8];
            for lane in 0..lanes {
                let at = at(lane) + unit * UNIT;
                let integers = match matrix {
                    Matrix::Quantized(q) => integers(q, at),
                    Matrix::Blocks { block, data, .. } => block.integers(block.at(data, at), at % block.weights() / UNIT),
                    Matrix::Plain { .. } => unreachable!("has no integers"),
                };
                let words = integers.as_chunks::<4>().0;
                steps.iter_mut().zip(words).for_each(|(step, word)| step[lane] = u32::from_le_bytes(*word));
            }
            F::Bits::pack(&steps, out);
        }
    }
}

/// MLX's scale and bias of group `index` of the whole weight.
fn pack_pair(header: &mut [u8], q: &Quantized<'_>, index: usize, lane: usize) {
    for (which, values) in [q.scales, q.biases].into_iter().enumerate() {
        let at = which * LANES + lane;
        if q.element == Element::F16 {
            header[at * 2..][..2].copy_from_slice(&values[index * 2..][..2]);
        } else {
            header[at * 4..][..4].copy_from_slice(&q.element.get(values, index).to_le_bytes());
        }
    }
}

/// Integers `first..first + 32` of a little-endian stream; eight bits less 128, as their form has them.
fn integers(q: &Quantized<'_>, first: usize) -> [u8; UNIT] {
    let bits = q.quantization.bits;
    let bytes = &q.words[first * bits / 8..][..UNIT * bits / 8];
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
