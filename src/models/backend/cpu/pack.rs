//! From a file's rows to slabs of eight: exact, so that a packed weight is the file's weight to the bit.

use super::Scratch;
use super::buffer::{Arena, Buffer};
use super::forms::{Bf16, Bytes, F16, F32, Fives, Form, Kind, Nibbles, Packing, Plain, Sixes, with_form};
use super::headers::{Factors, Pair, Scale, SignedFactors};
use super::isa::{Isa, LANES, UNIT};
use super::matmul::TILE;
use super::pool::Pool;
use crate::models::weights::{Affine, Block, Element, Matrix, Quantized};
use crate::models::{Error, Result};
use half::f16;

/// A weight of `rows` outputs and `columns` inputs in slabs; rows are padded with zeros to whole slabs.
pub struct Packed {
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
            for (block, out) in out.chunks_exact_mut(kind.block_bytes()).enumerate() {
                pack(out, kind, matrix, slab * LANES, block);
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

    /// Bytes of a unit's planes of fifth and sixth bits, and of the unit.
    fn unit_bytes(self) -> (usize, usize) {
        match self {
            Self::Plain(_) => unreachable!("plain weights have no units"),
            Self::Affine { bits: 4, .. } | Self::Q4_0 | Self::Q4_1 | Self::Q2_K | Self::Q4_K => (0, 128),
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => (32, 160),
            Self::Affine { bits: 6, .. } | Self::Q6_K => (64, 192),
            Self::Affine { .. } | Self::Q8_0 => (0, 256),
        }
    }
}

/// Block `block` of the eight rows from `first`; rows beyond the last stay zero.
fn pack(out: &mut [u8], kind: Kind, matrix: &Matrix<'_>, first: usize, block: usize) {
    let (rows, columns) = matrix.shape();
    let lanes = LANES.min(rows - first);
    if let Matrix::Plain { element, data, .. } = matrix {
        (0..lanes).for_each(|lane| pack_plain(out, *element, data, (first + lane) * columns + block * UNIT, lane));
        return;
    }
    let units = kind.block() / UNIT;
    let (planes, bytes) = kind.unit_bytes();
    let (header, body) = out.split_at_mut(out.len() - units * bytes);
    for lane in 0..lanes {
        match matrix {
            Matrix::Quantized(q) => pack_pair(header, q, (first + lane) * (columns / q.quantization.group) + block, lane),
            Matrix::Blocks { block: of, data, .. } => {
                pack_scales(header, kind, *of, data, (first + lane) * columns + block * kind.block(), lane)
            }
            Matrix::Plain { .. } => unreachable!("packed above"),
        }
    }
    for (unit, out) in body.chunks_exact_mut(bytes).enumerate() {
        let mut q = [[0u8; UNIT]; LANES];
        for (lane, q) in q.iter_mut().enumerate().take(lanes) {
            let at = (first + lane) * columns + (block * units + unit) * UNIT;
            *q = match matrix {
                Matrix::Quantized(of) => integers(of, at),
                Matrix::Blocks { block: of, data, .. } => of.integers(of.at(data, at), at % of.weights() / UNIT),
                Matrix::Plain { .. } => unreachable!("packed above"),
            };
        }
        pack_unit(out, planes, &q);
    }
}

fn pack_plain(out: &mut [u8], element: Element, data: &[u8], first: usize, lane: usize) {
    let bytes = element.bytes();
    for i in 0..UNIT {
        let (from, to) = ((first + i) * bytes, (i * LANES + lane) * bytes);
        out[to..to + bytes].copy_from_slice(&data[from..from + bytes]);
    }
}

/// A unit in steps: a word is four inputs of one row.
fn pack_unit(out: &mut [u8], planes: usize, q: &[[u8; UNIT]; LANES]) {
    let word = |lane: usize, step: usize| u32::from_le_bytes(q[lane][4 * step..4 * step + 4].try_into().expect("four bytes"));
    let put = |out: &mut [u8], vector: usize, lane: usize, word: u32| {
        out[vector * 32 + lane * 4..vector * 32 + lane * 4 + 4].copy_from_slice(&word.to_le_bytes());
    };
    let (high, low) = out.split_at_mut(planes);
    for lane in 0..LANES {
        if low.len() == 256 {
            (0..8).for_each(|step| put(low, step, lane, word(lane, step)));
            continue;
        }
        for j in 0..4 {
            put(low, j, lane, word(lane, 2 * j) & 0x0f0f_0f0f | (word(lane, 2 * j + 1) & 0x0f0f_0f0f) << 4);
        }
        match planes {
            32 => put(high, 0, lane, (0..8).fold(0, |plane, step| plane | (word(lane, step) >> 4 & 0x0101_0101) << step)),
            64 => {
                for half in 0..2 {
                    let bits = |plane, step| plane | (word(lane, half * 4 + step) >> 4 & 0x0303_0303) << (2 * step);
                    put(high, half, lane, (0..4).fold(0, bits));
                }
            }
            _ => {}
        }
    }
}

/// MLX's scale and bias of group `index` of the whole weight.
fn pack_pair(header: &mut [u8], q: &Quantized<'_>, index: usize, lane: usize) {
    let bytes = if q.element == Element::F16 { 2 } else { 4 };
    for (which, values) in [q.scales, q.biases].into_iter().enumerate() {
        let at = (which * LANES + lane) * bytes;
        let value = q.element.get(values, index);
        if bytes == 2 {
            put_half(header, at, f16::from_f32(value));
        } else {
            header[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// The scales of a packed block's groups, whose first input is `first` of the whole weight's.
fn pack_scales(header: &mut [u8], kind: Kind, of: Block, data: &[u8], first: usize, lane: usize) {
    let block = of.at(data, first);
    let affine = |group| of.affine(block, group);
    let Affine { d, e, .. } = affine(0);
    put_half(header, lane * 2, d);
    match kind {
        Kind::Q4_0 | Kind::Q5_0 | Kind::Q8_0 => {}
        Kind::Q4_1 | Kind::Q5_1 => put_half(header, (LANES + lane) * 2, e),
        Kind::Q2_K | Kind::Q4_K | Kind::Q5_K => {
            put_half(header, (LANES + lane) * 2, e);
            for (group, factors) in header[LANES * 4..].chunks_exact_mut(LANES * 2).enumerate() {
                let Affine { scale, bias, .. } = affine(group);
                (factors[lane], factors[LANES + lane]) = (scale as u8, -bias as u8);
            }
        }
        Kind::Q6_K => {
            for (group, factors) in header[LANES * 2..].chunks_exact_mut(LANES).enumerate().take(16) {
                factors[lane] = affine(group).scale as u8;
            }
        }
        Kind::Plain(_) | Kind::Affine { .. } => unreachable!("not of GGUF's blocks"),
    }
}

fn put_half(out: &mut [u8], at: usize, value: f16) {
    out[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Integers `first..first + 32` of a little-endian stream; eight bits less 128, as their form has them.
fn integers(q: &Quantized<'_>, first: usize) -> [u8; UNIT] {
    let bits = q.quantization.bits;
    let bytes = &q.words[first * bits / 8..][..UNIT * bits / 8];
    match bits {
        4 => std::array::from_fn(|i| bytes[i / 2] >> (i % 2 * 4) & 15),
        8 => std::array::from_fn(|i| bytes[i].wrapping_sub(128)),
        _ => std::array::from_fn(|i| {
            let (byte, shift) = (i * bits / 8, i * bits % 8);
            let next = bytes.get(byte + 1).map_or(0, |&next| u16::from(next));
            ((next << 8 | u16::from(bytes[byte])) >> shift & ((1 << bits) - 1)) as u8
        }),
    }
}
