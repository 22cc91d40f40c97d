//! GGUF's quantized blocks, by the format's definition. Each is affine by groups of 16 or 32 inputs:
//! `w = q * scale + bias` with an integer of eight bits, where scale and bias are exact in f32.

use half::f16;

/// A block's type, named as ggml names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the format's own names")]
pub enum Block {
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

/// What the four bits of IQ4_NL stand for.
const NONLINEAR: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Block {
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

    /// Inputs of a block.
    pub const fn weights(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Inputs that share a scale and a bias.
    pub const fn group(self) -> usize {
        match self {
            Self::Q2_K | Self::Q3_K | Self::Q6_K => 16,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL | Self::Q4_K | Self::Q5_K => 32,
        }
    }

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

    /// Group `g` of a block: its integers into `q`, its scale and bias. Products of an f16 and a scale of at most
    /// eight bits are exact in f32, so nothing is rounded.
    pub fn decode(self, b: &[u8], g: usize, q: &mut [i8]) -> (f32, f32) {
        debug_assert!(b.len() == self.bytes() && q.len() == self.group());
        match self {
            Self::Q4_0 => {
                nibbles(&b[2..18], q, |n| n as i8);
                (half(b, 0), -8.0 * half(b, 0))
            }
            Self::Q4_1 => {
                nibbles(&b[4..20], q, |n| n as i8);
                (half(b, 0), half(b, 2))
            }
            Self::IQ4_NL => {
                nibbles(&b[2..18], q, |n| NONLINEAR[usize::from(n)]);
                (half(b, 0), 0.0)
            }
            Self::Q5_0 => {
                nibbles(&b[6..22], q, |n| n as i8 - 16);
                add_fifth(&b[2..6], q);
                (half(b, 0), 0.0)
            }
            Self::Q5_1 => {
                nibbles(&b[8..24], q, |n| n as i8);
                add_fifth(&b[4..8], q);
                (half(b, 0), half(b, 2))
            }
            Self::Q8_0 => {
                q.iter_mut().zip(&b[2..34]).for_each(|(q, &byte)| *q = byte as i8);
                (half(b, 0), 0.0)
            }
            Self::Q2_K => {
                pairs(&b[16..80], g, q);
                let scale = b[g];
                (half(b, 80) * f32::from(scale & 15), -(half(b, 82) * f32::from(scale >> 4)))
            }
            Self::Q3_K => {
                pairs(&b[32..96], g, q);
                for (q, high) in q.iter_mut().zip(&b[g % 2 * 16..]) {
                    *q += 4 * (high >> (g / 2) & 1) as i8 - 4;
                }
                (half(b, 108) * f32::from(scale3(&b[96..108], g)), 0.0)
            }
            Self::Q4_K => {
                let (scale, min) = scale4(&b[4..16], g);
                for (q, byte) in q.iter_mut().zip(&b[16 + g / 2 * 32..]) {
                    *q = (byte >> (4 * (g % 2)) & 15) as i8;
                }
                (half(b, 0) * f32::from(scale), -(half(b, 2) * f32::from(min)))
            }
            Self::Q5_K => {
                let (scale, min) = scale4(&b[4..16], g);
                for ((q, byte), high) in q.iter_mut().zip(&b[48 + g / 2 * 32..]).zip(&b[16..48]) {
                    *q = (byte >> (4 * (g % 2)) & 15 | (high >> g & 1) << 4) as i8;
                }
                (half(b, 0) * f32::from(scale), -(half(b, 2) * f32::from(min)))
            }
            Self::Q6_K => {
                // Half a block has four runs of 32 inputs: low bits of two, then of two in the high nibbles.
                let (part, run, at) = (g / 8, g % 8 / 2, g % 2 * 16);
                let (low, high) = (&b[part * 64 + run % 2 * 32 + at..], &b[128 + part * 32 + at..]);
                for ((q, low), high) in q.iter_mut().zip(low).zip(high) {
                    *q = (low >> (4 * (run / 2)) & 15 | (high >> (2 * run) & 3) << 4) as i8 - 32;
                }
                (half(b, 208) * f32::from(b[192 + g] as i8), 0.0)
            }
        }
    }
}

fn half(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Sixteen bytes: inputs 0..16 in the low, 16..32 in the high four bits.
fn nibbles(bytes: &[u8], q: &mut [i8], value: impl Fn(u8) -> i8) {
    let (low, high) = q.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}

/// The fifth bits of 32 inputs, in their order.
fn add_fifth(bytes: &[u8], q: &mut [i8]) {
    for (i, q) in q.iter_mut().enumerate() {
        *q += 16 * (bytes[i / 8] >> (i % 8) & 1) as i8;
    }
}

/// Two bits each: 32 bytes hold runs of 32 inputs in bits 0, 2, 4 and 6; a group is half a run.
fn pairs(bytes: &[u8], g: usize, q: &mut [i8]) {
    let (part, run, at) = (g / 8, g % 8 / 2, g % 2 * 16);
    for (q, byte) in q.iter_mut().zip(&bytes[part * 32 + at..]) {
        *q = (byte >> (2 * run) & 3) as i8;
    }
}

/// Q3_K's six-bit scale of group `g`, less 32: four bits in eight bytes, two more in the last four.
fn scale3(s: &[u8], g: usize) -> i8 {
    let low = s[g % 8] >> (4 * (g / 8)) & 15;
    let high = s[8 + g % 4] >> (2 * (g / 4)) & 3;
    (low | high << 4) as i8 - 32
}

/// The six-bit scale and min of group `g` of Q4_K and Q5_K, from twelve bytes.
fn scale4(s: &[u8], g: usize) -> (u8, u8) {
    if g < 4 { (s[g] & 63, s[g + 4] & 63) } else { (s[g + 4] & 15 | s[g - 4] >> 6 << 4, s[g + 4] >> 4 | s[g] >> 6 << 4) }
}
