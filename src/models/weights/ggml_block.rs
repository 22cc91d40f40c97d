//! ggml's quantized blocks, by the structs of ggml-common.h and `dequantize_row_*` of ggml-quants.c. All are affine per group
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

/// Scale `d * scale` and bias `e * bias` of a group, as factors: the f16 values of the block and the integers of the group.
/// Both products are exact in f32.
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

/// Weights that `GgmlBlock::integers` unpacks per call.
const UNIT: usize = 32;

/// Bytes that each hold bits of one weight of a unit. A fixed-size array lets the compiler vectorize.
type Run = [u8; UNIT];

/// The codebook of IQ4_NL (`kvalues_iq4nl` in ggml).
const NONLINEAR: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

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

    /// Unpacks the integers of weights `unit * 32..` of block `b`, as two's complement for Q8_0 and IQ4_NL, whose bias is 0.
    /// Q3_K's integers are increased by 28, so that they have Q6_K's zero point of 32 instead of 4.
    pub fn integers(self, b: &[u8], unit: usize) -> [u8; UNIT] {
        debug_assert_eq!(b.len(), self.bytes());
        match self {
            Self::Q4_0 => nibbles(part(b, 2)),
            Self::Q4_1 => nibbles(part(b, 4)),
            Self::IQ4_NL => nibbles(part(b, 2)).map(|n| NONLINEAR[usize::from(n)] as u8),
            Self::Q5_0 => with_fifth(nibbles(part(b, 6)), part(b, 2)),
            Self::Q5_1 => with_fifth(nibbles(part(b, 8)), part(b, 4)),
            Self::Q8_0 => *part(b, 2),
            Self::Q2_K => {
                let low: &Run = part(b, 16 + unit / 4 * 32);
                std::array::from_fn(|i| low[i] >> (2 * (unit % 4)) & 3)
            }
            Self::Q3_K => {
                let (high, low): (&Run, &Run) = (part(b, 0), part(b, 32 + unit / 4 * 32));
                std::array::from_fn(|i| 28 + (low[i] >> (2 * (unit % 4)) & 3 | (high[i] >> unit & 1) << 2))
            }
            Self::Q4_K => {
                let low: &Run = part(b, 16 + unit / 2 * 32);
                std::array::from_fn(|i| low[i] >> (4 * (unit % 2)) & 15)
            }
            Self::Q5_K => {
                let (high, low): (&Run, &Run) = (part(b, 16), part(b, 48 + unit / 2 * 32));
                std::array::from_fn(|i| low[i] >> (4 * (unit % 2)) & 15 | (high[i] >> unit & 1) << 4)
            }
            Self::Q6_K => {
                // Each half of a block has four units: the low bits of the first two are in the low nibbles, of the others in the high.
                let (side, run) = (unit / 4, unit % 4);
                let (low, high): (&Run, &Run) = (part(b, side * 64 + run % 2 * 32), part(b, 128 + side * 32));
                std::array::from_fn(|i| low[i] >> (4 * (run / 2)) & 15 | (high[i] >> (2 * run) & 3) << 4)
            }
        }
    }

    /// Scale and bias of group `g` of block `b`.
    pub fn affine(self, b: &[u8], g: usize) -> Affine {
        match self {
            Self::Q4_0 => Affine::new(half(b, 0), 1, half(b, 0), -8),
            Self::Q5_0 => Affine::new(half(b, 0), 1, half(b, 0), -16),
            Self::Q4_1 | Self::Q5_1 => Affine::new(half(b, 0), 1, half(b, 2), 1),
            Self::Q8_0 | Self::IQ4_NL => Affine::new(half(b, 0), 1, f16::ZERO, 0),
            Self::Q2_K => Affine::new(half(b, 80), i16::from(b[g] & 15), half(b, 82), -i16::from(b[g] >> 4)),
            Self::Q3_K => {
                let scale = i16::from(scale3(&b[96..108], g));
                Affine::new(half(b, 108), scale, half(b, 108), -32 * scale)
            }
            Self::Q4_K | Self::Q5_K => {
                let (scale, min) = scale4(&b[4..16], g);
                Affine::new(half(b, 0), scale.into(), half(b, 2), -i16::from(min))
            }
            Self::Q6_K => {
                let scale = i16::from(b[192 + g] as i8);
                Affine::new(half(b, 208), scale, half(b, 208), -32 * scale)
            }
        }
    }
}

fn part<const BYTES: usize>(b: &[u8], at: usize) -> &[u8; BYTES] {
    b[at..].first_chunk().expect("inside the block")
}

fn half(b: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([b[at], b[at + 1]])
}

/// Unpacks 4-bit integers: weights 0..16 are in the low nibbles, 16..32 in the high ones.
fn nibbles(bytes: &[u8; 16]) -> [u8; UNIT] {
    std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
}

/// Adds the fifth bits of 32 weights, stored in their order.
fn with_fifth(low: [u8; UNIT], bytes: &[u8; 4]) -> [u8; UNIT] {
    std::array::from_fn(|i| low[i] | (bytes[i / 8] >> (i % 8) & 1) << 4)
}

/// Q3_K's 6-bit scale of group `g`, minus 32. Eight bytes hold the low four bits, four bytes the high two.
fn scale3(s: &[u8], g: usize) -> i8 {
    let low = s[g % 8] >> (4 * (g / 8)) & 15;
    let high = s[8 + g % 4] >> (2 * (g / 4)) & 3;
    (low | high << 4) as i8 - 32
}

/// The 6-bit scale and min of group `g` of Q4_K and Q5_K, from twelve bytes (`get_scale_min_k4` in ggml).
fn scale4(s: &[u8], g: usize) -> (u8, u8) {
    if g < 4 { (s[g] & 63, s[g + 4] & 63) } else { (s[g + 4] & 15 | s[g - 4] >> 6 << 4, s[g + 4] >> 4 | s[g] >> 6 << 4) }
}
