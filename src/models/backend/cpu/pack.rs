//! From a file's rows to slabs of eight: exact, so that a packed weight is the file's weight to the bit.

use super::buffer::Buffer;
use super::forms::{Bf16, F16, F32, Form, Kind, Q4, Q8, header, with_form};
use super::isa::{LANES, Scalar, UNIT};
use super::pool::Pool;
use crate::models::weights::{Block, Element, Matrix, Quantized};
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
    pub(super) fn new(matrix: &Matrix<'_>, pool: &mut Pool) -> Result<Self> {
        let (rows, columns) = matrix.shape();
        if columns % UNIT != 0 {
            return Err(Error::Unsupported(format!("{columns} inputs are not a multiple of {UNIT}")));
        }
        let kind = kind(matrix);
        let slab_bytes = columns / kind.group() * kind.block_bytes();
        let slabs = rows.div_ceil(LANES);
        let packed = Self { kind, rows, columns, data: Buffer::zeroed(slabs * slab_bytes) };
        pool.run(slabs, &|slab, _| {
            // SAFETY: each piece has its own slab, so no two threads share a byte of this exclusive slice.
            let out = unsafe { std::slice::from_raw_parts_mut(packed.slab(slab).cast_mut(), slab_bytes) };
            let block_bytes = kind.block_bytes();
            for (block, out) in out.chunks_exact_mut(block_bytes).enumerate() {
                for lane in 0..LANES.min(rows - slab * LANES) {
                    match matrix {
                        Matrix::Plain { element, data, .. } => {
                            pack_plain(out, *element, data, (slab * LANES + lane) * columns, block, lane)
                        }
                        Matrix::Quantized(q) => pack_quantized(out, kind, q, slab * LANES + lane, block, lane),
                        Matrix::Blocks { block: of, data, .. } => {
                            pack_group(out, kind, *of, data, (slab * LANES + lane) * columns / of.group() + block, lane)
                        }
                    }
                }
            }
        });
        Ok(packed)
    }

    pub(super) fn slabs(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    pub(super) fn blocks(&self) -> usize {
        self.columns / self.kind.group()
    }

    pub(super) fn slab_bytes(&self) -> usize {
        self.blocks() * self.kind.block_bytes()
    }

    pub(super) fn slab(&self, slab: usize) -> *const u8 {
        debug_assert!(slab < self.slabs());
        self.data.as_slice()[slab * self.slab_bytes()..].as_ptr()
    }

    /// One row as floats: an embedding.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns);
        let mut tile = [0f32; 128 * LANES];
        for (block, out) in out.chunks_exact_mut(self.kind.group()).enumerate() {
            // SAFETY: the block is inside the row's slab, and the largest group has 128 inputs.
            unsafe { with_form!(self.kind, F => F::tile::<Scalar>(self.slab(row / LANES).add(block * F::BYTES), tile.as_mut_ptr())) };
            for (i, x) in out.iter_mut().enumerate() {
                *x = tile[i * LANES + row % LANES];
            }
        }
    }
}

fn kind(matrix: &Matrix<'_>) -> Kind {
    match matrix {
        Matrix::Plain { element, .. } => Kind::Plain(*element),
        Matrix::Blocks { block: block @ (Block::Q4_0 | Block::Q4_1), data, .. } => {
            Kind::Q4 { group: block.group(), wide: *block == Block::Q4_0 && !biases_fit(data) }
        }
        // A scale of f16 times one of the format's small integers needs f32, and so does what an odd bias adds.
        Matrix::Blocks { block, .. } => Kind::Q8 { group: block.group(), wide: true },
        Matrix::Quantized(q) => {
            let group = q.quantization.group;
            match q.quantization.bits {
                4 => Kind::Q4 { group, wide: q.element != Element::F16 },
                // Eight bits are stored less 128, and a bias of f16 can't hold what that adds.
                8 => Kind::Q8 { group, wide: true },
                _ => Kind::Q8 { group, wide: q.element != Element::F16 },
            }
        }
    }
}

/// Whether every bias of Q4_0, which is minus eight scales, is an f16: all but the largest are.
fn biases_fit(data: &[u8]) -> bool {
    data.chunks_exact(Block::Q4_0.bytes()).all(|block| {
        let bias = -8.0 * Element::F16.get(block, 0);
        f16::from_f32(bias).to_f32() == bias
    })
}

fn pack_plain(out: &mut [u8], element: Element, data: &[u8], first: usize, block: usize, lane: usize) {
    let bytes = element.bytes();
    for i in 0..UNIT {
        let from = (first + block * UNIT + i) * bytes;
        let to = (i * LANES + lane) * bytes;
        out[to..to + bytes].copy_from_slice(&data[from..from + bytes]);
    }
}

fn pack_quantized(out: &mut [u8], kind: Kind, q: &Quantized<'_>, row: usize, block: usize, lane: usize) {
    let (group, bits) = (q.quantization.group, q.quantization.bits);
    let (four, wide) = match kind {
        Kind::Q4 { wide, .. } => (true, wide),
        Kind::Q8 { wide, .. } => (false, wide),
        Kind::Plain(_) => unreachable!("the kind was made from this matrix"),
    };
    let index = row * (q.columns / group) + block;
    let (scale, mut bias) = (q.element.get(q.scales, index), q.element.get(q.biases, index));
    if bits == 8 {
        bias += 128.0 * scale;
    }
    pack_scale(out, wide, scale, bias, lane);
    let words = &q.words[row * q.columns * bits / 8..(row + 1) * q.columns * bits / 8];
    let out = &mut out[header(wide)..];
    if four {
        let words = &words[block * group / 2..(block + 1) * group / 2];
        for (vector, word) in out.chunks_exact_mut(32).zip(words.chunks_exact(4)) {
            let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
            let packed = spread(word & 0xffff) | spread(word >> 16) << 4;
            vector[lane * 4..lane * 4 + 4].copy_from_slice(&packed.to_le_bytes());
        }
        return;
    }
    for i in 0..group {
        let value = unpack(words, bits, block * group + i);
        out[i / 4 * 32 + lane * 4 + i % 4] = if bits == 8 { value.wrapping_sub(128) } else { value };
    }
}

/// Group `index` of all the groups of a GGUF weight.
fn pack_group(out: &mut [u8], kind: Kind, block: Block, data: &[u8], index: usize, lane: usize) {
    let per_block = block.weights() / block.group();
    let bytes = &data[index / per_block * block.bytes()..][..block.bytes()];
    let mut q = [0i8; 32];
    let q = &mut q[..block.group()];
    let (scale, bias) = block.decode(bytes, index % per_block, q);
    let (four, wide) = match kind {
        Kind::Q4 { wide, .. } => (true, wide),
        Kind::Q8 { wide, .. } => (false, wide),
        Kind::Plain(_) => unreachable!("the kind was made from this matrix"),
    };
    pack_scale(out, wide, scale, bias, lane);
    let vectors = out[header(wide)..].chunks_exact_mut(32);
    if four {
        for (vector, q) in vectors.zip(q.chunks_exact(8)) {
            for i in 0..4 {
                vector[lane * 4 + i] = (q[i] | q[4 + i] << 4) as u8;
            }
        }
    } else {
        for (vector, q) in vectors.zip(q.chunks_exact(4)) {
            for i in 0..4 {
                vector[lane * 4 + i] = q[i] as u8;
            }
        }
    }
}

fn pack_scale(out: &mut [u8], wide: bool, scale: f32, bias: f32, lane: usize) {
    for (which, value) in [scale, bias].into_iter().enumerate() {
        let at = which * LANES + lane;
        if wide {
            out[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
        } else {
            out[at * 2..at * 2 + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
    }
}

/// Four nibbles to the low halves of four bytes.
fn spread(nibbles: u32) -> u32 {
    let pairs = (nibbles | nibbles << 8) & 0x00ff_00ff;
    (pairs | pairs << 4) & 0x0f0f_0f0f
}

/// Integer `index` of a little-endian stream of `bits`-wide integers.
fn unpack(words: &[u8], bits: usize, index: usize) -> u8 {
    let (byte, shift) = (index * bits / 8, index * bits % 8);
    let low = u16::from(words[byte]);
    let high = words.get(byte + 1).map_or(0, |&b| u16::from(b));
    (((high << 8 | low) >> shift) & ((1 << bits) - 1)) as u8
}
