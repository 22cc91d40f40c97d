//! ggml's quantized blocks, after the structs in ggml-common.h and `dequantize_row_*` in ggml-quants.c. Each is affine per group
//! of 16 or 32 weights: `w = q * scale + bias` with an integer `q` of at most eight bits.

use half::f16;

/// The block types, with ggml's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub enum GgmlBlock {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
}

/// Scale `d * scale` and bias `e * bias` of a group. `d` and `e` are the block's f16 values (ggml's `d`, and `m` or `dmin`), `scale`
/// and `bias` the group's integers. Both products are exact in f32.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    pub d: f16,
    pub scale: i16,
    pub e: f16,
    pub bias: i16,
}

impl Affine {
    fn new(d: f16, scale: i16, e: f16, bias: i16) -> Self {
        Self { d, scale, e, bias }
    }
}

/// Weights that `GgmlBlock::integers` unpacks per call: the columns of a k-block of the packed layouts.
const K_BLOCK: usize = 32;

/// The codebook of IQ4_NL (`kvalues_iq4nl` in ggml).
const IQ4_NL_CODEBOOK: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl GgmlBlock {
    pub const ALL: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
    ];

    /// Weights per block (ggml's block size).
    pub const fn elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes per block (ggml's type size).
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// The block of `data` that contains weight `index`.
    pub fn at(self, data: &[u8], index: usize) -> &[u8] {
        &data[index / self.elements() * self.bytes()..][..self.bytes()]
    }

    /// Unpacks the integers of weights `k_block * 32..` of block `b`, as two's complement for Q8_0 and IQ4_NL, whose bias is 0.
    /// Q3_K's integers are increased by 28, so that they have Q6_K's zero point of 32 instead of 4.
    pub fn integers(self, b: &[u8], k_block: usize) -> [u8; K_BLOCK] {
        debug_assert_eq!(b.len(), self.bytes());
        match self {
            Self::Q4_0 => nibbles(bytes_at(b, 2)),
            Self::Q4_1 => nibbles(bytes_at(b, 4)),
            Self::IQ4_NL => nibbles(bytes_at(b, 2)).map(|n| IQ4_NL_CODEBOOK[usize::from(n)] as u8),
            Self::Q5_0 => add_fifth_bits(nibbles(bytes_at(b, 6)), bytes_at(b, 2)),
            Self::Q5_1 => add_fifth_bits(nibbles(bytes_at(b, 8)), bytes_at(b, 4)),
            Self::Q8_0 => *bytes_at(b, 2),
            Self::Q2_K => {
                let low: &[u8; K_BLOCK] = bytes_at(b, 16 + k_block / 4 * 32);
                std::array::from_fn(|i| low[i] >> (2 * (k_block % 4)) & 3)
            }
            Self::Q3_K => {
                let (high, low): (&[u8; K_BLOCK], &[u8; K_BLOCK]) = (bytes_at(b, 0), bytes_at(b, 32 + k_block / 4 * 32));
                std::array::from_fn(|i| 28 + (low[i] >> (2 * (k_block % 4)) & 3 | (high[i] >> k_block & 1) << 2))
            }
            Self::Q4_K => {
                let low: &[u8; K_BLOCK] = bytes_at(b, 16 + k_block / 2 * 32);
                std::array::from_fn(|i| low[i] >> (4 * (k_block % 2)) & 15)
            }
            Self::Q5_K => {
                let (high, low): (&[u8; K_BLOCK], &[u8; K_BLOCK]) = (bytes_at(b, 16), bytes_at(b, 48 + k_block / 2 * 32));
                std::array::from_fn(|i| low[i] >> (4 * (k_block % 2)) & 15 | (high[i] >> k_block & 1) << 4)
            }
            Self::Q6_K => {
                // Each half of a block has four k-blocks. The low nibbles have the low bits of the first two, the high nibbles those of
                // the other two.
                let (half, quarter) = (k_block / 4, k_block % 4);
                let (low, high): (&[u8; K_BLOCK], &[u8; K_BLOCK]) =
                    (bytes_at(b, half * 64 + quarter % 2 * 32), bytes_at(b, 128 + half * 32));
                std::array::from_fn(|i| low[i] >> (4 * (quarter / 2)) & 15 | (high[i] >> (2 * quarter) & 3) << 4)
            }
        }
    }

    /// Scale and bias of group `g` of block `b`.
    pub fn affine(self, b: &[u8], g: usize) -> Affine {
        match self {
            Self::Q4_0 => Affine::new(f16_at(b, 0), 1, f16_at(b, 0), -8),
            Self::Q5_0 => Affine::new(f16_at(b, 0), 1, f16_at(b, 0), -16),
            Self::Q4_1 | Self::Q5_1 => Affine::new(f16_at(b, 0), 1, f16_at(b, 2), 1),
            Self::Q8_0 | Self::IQ4_NL => Affine::new(f16_at(b, 0), 1, f16::ZERO, 0),
            Self::Q2_K => Affine::new(f16_at(b, 80), i16::from(b[g] & 15), f16_at(b, 82), -i16::from(b[g] >> 4)),
            Self::Q3_K => {
                let scale = i16::from(q3_k_scale(&b[96..108], g));
                Affine::new(f16_at(b, 108), scale, f16_at(b, 108), -32 * scale)
            }
            Self::Q4_K | Self::Q5_K => {
                let (scale, min) = q4_k_scale_min(&b[4..16], g);
                Affine::new(f16_at(b, 0), scale.into(), f16_at(b, 2), -i16::from(min))
            }
            Self::Q6_K => {
                let scale = i16::from(b[192 + g] as i8);
                Affine::new(f16_at(b, 208), scale, f16_at(b, 208), -32 * scale)
            }
        }
    }
}

/// The bytes from `at` on, as an array of fixed size, which lets the compiler vectorize.
fn bytes_at<const BYTES: usize>(b: &[u8], at: usize) -> &[u8; BYTES] {
    b[at..].first_chunk().expect("inside the block")
}

fn f16_at(b: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([b[at], b[at + 1]])
}

/// Unpacks 4-bit integers: weights 0..16 are in the low nibbles, 16..32 in the high ones.
fn nibbles(bytes: &[u8; 16]) -> [u8; K_BLOCK] {
    std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
}

/// Adds the fifth bits of 32 weights, stored in their order.
fn add_fifth_bits(low: [u8; K_BLOCK], bytes: &[u8; 4]) -> [u8; K_BLOCK] {
    std::array::from_fn(|i| low[i] | (bytes[i / 8] >> (i % 8) & 1) << 4)
}

/// Q3_K's 6-bit scale of group `g`, minus 32. Eight bytes hold the low four bits, four bytes the high two.
fn q3_k_scale(s: &[u8], g: usize) -> i8 {
    let low = s[g % 8] >> (4 * (g / 8)) & 15;
    let high = s[8 + g % 4] >> (2 * (g / 4)) & 3;
    (low | high << 4) as i8 - 32
}

/// The 6-bit scale and min of group `g` of Q4_K and Q5_K, from twelve bytes (`get_scale_min_k4` in ggml).
fn q4_k_scale_min(s: &[u8], g: usize) -> (u8, u8) {
    if g < 4 { (s[g] & 63, s[g + 4] & 63) } else { (s[g + 4] & 15 | s[g - 4] >> 6 << 4, s[g + 4] >> 4 | s[g] >> 6 << 4) }
}
