//! Packing and products of every ggml block type, against the definition: ggml's own dequantization loops, value by value,
//! independent of `GgmlBlock::integers` and `GgmlBlock::affine`.

use super::super::buffer::Arena;
use super::super::kernels::Kernels;
use super::super::pool::Pool;
use super::super::weights::pack::Packed;
use super::{Operand, Random, product, quantize};
use crate::models::weights::{GgmlBlock, Matrix};
use half::f16;

fn half(b: &[u8]) -> f32 {
    f16::from_le_bytes([b[0], b[1]]).to_f32()
}

/// `get_scale_min_k4` of ggml.
fn scale_min(j: usize, q: &[u8]) -> (u8, u8) {
    if j < 4 { (q[j] & 63, q[j + 4] & 63) } else { ((q[j + 4] & 0xf) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4)) }
}

/// Dequantizes one block as ggml's `dequantize_row_*` does, in its order of operations.
fn definition(block: GgmlBlock, b: &[u8]) -> Vec<f32> {
    const NONLINEAR: [f32; 16] = [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];
    let mut y = vec![0f32; block.elements()];
    match block {
        GgmlBlock::Q4_0 => {
            for j in 0..16 {
                y[j] = (f32::from(b[2 + j] & 15) - 8.0) * half(b);
                y[j + 16] = (f32::from(b[2 + j] >> 4) - 8.0) * half(b);
            }
        }
        GgmlBlock::Q4_1 => {
            for j in 0..16 {
                y[j] = f32::from(b[4 + j] & 15) * half(b) + half(&b[2..]);
                y[j + 16] = f32::from(b[4 + j] >> 4) * half(b) + half(&b[2..]);
            }
        }
        GgmlBlock::Q5_0 | GgmlBlock::Q5_1 => {
            let (at, zero, min) = if block == GgmlBlock::Q5_0 { (2, 16.0, 0.0) } else { (4, 0.0, half(&b[2..])) };
            let high = u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
            for j in 0..16 {
                let x0 = u32::from(b[at + 4 + j] & 15) | ((high >> j) << 4) & 16;
                let x1 = u32::from(b[at + 4 + j] >> 4) | (high >> (j + 12)) & 16;
                y[j] = (x0 as f32 - zero) * half(b) + min;
                y[j + 16] = (x1 as f32 - zero) * half(b) + min;
            }
        }
        GgmlBlock::Q8_0 => {
            for j in 0..32 {
                y[j] = f32::from(b[2 + j] as i8) * half(b);
            }
        }
        GgmlBlock::IQ4_NL => {
            for j in 0..16 {
                y[j] = half(b) * NONLINEAR[usize::from(b[2 + j] & 15)];
                y[j + 16] = half(b) * NONLINEAR[usize::from(b[2 + j] >> 4)];
            }
        }
        GgmlBlock::Q2_K => {
            let (scales, mut qs, d, min) = (&b[..16], &b[16..80], half(&b[80..]), half(&b[82..]));
            let (mut at, mut is) = (0, 0);
            for _ in 0..2 {
                for shift in [0, 2, 4, 6] {
                    for side in 0..2 {
                        let (dl, ml) = (d * f32::from(scales[is] & 15), min * f32::from(scales[is] >> 4));
                        is += 1;
                        for l in 0..16 {
                            y[at] = dl * f32::from((qs[16 * side + l] >> shift) & 3) - ml;
                            at += 1;
                        }
                    }
                }
                qs = &qs[32..];
            }
        }
        GgmlBlock::Q3_K => {
            let (hm, mut qs, packed, d_all) = (&b[..32], &b[32..96], &b[96..108], half(&b[108..]));
            let word = |i: usize| u32::from_le_bytes(packed[4 * i..4 * i + 4].try_into().unwrap());
            let (low, two) = (0x0f0f_0f0fu32, 0x0303_0303u32);
            let tmp = word(2);
            let aux = [
                (word(0) & low) | ((tmp & two) << 4),
                (word(1) & low) | (((tmp >> 2) & two) << 4),
                ((word(0) >> 4) & low) | (((tmp >> 4) & two) << 4),
                ((word(1) >> 4) & low) | (((tmp >> 6) & two) << 4),
            ];
            let scales: Vec<i8> = aux.iter().flat_map(|word| word.to_le_bytes()).map(|byte| byte as i8).collect();
            let (mut at, mut is, mut m) = (0, 0, 1u8);
            for _ in 0..2 {
                for shift in [0, 2, 4, 6] {
                    for side in 0..2 {
                        let dl = d_all * f32::from(scales[is] - 32);
                        is += 1;
                        for l in 0..16 {
                            let q = ((qs[16 * side + l] >> shift) & 3) as i8 - if hm[16 * side + l] & m != 0 { 0 } else { 4 };
                            y[at] = dl * f32::from(q);
                            at += 1;
                        }
                    }
                    m <<= 1;
                }
                qs = &qs[32..];
            }
        }
        GgmlBlock::Q4_K | GgmlBlock::Q5_K => {
            let (d, min, scales) = (half(b), half(&b[2..]), &b[4..16]);
            let (high, mut ql) = if block == GgmlBlock::Q4_K { (&[0u8; 32][..], &b[16..]) } else { (&b[16..48], &b[48..]) };
            let (mut at, mut is, mut u) = (0, 0, 1u8);
            for _ in 0..4 {
                for side in 0..2 {
                    let (sc, m) = scale_min(is, scales);
                    let (d1, m1) = (d * f32::from(sc), min * f32::from(m));
                    is += 1;
                    for l in 0..32 {
                        let q = (ql[l] >> (4 * side)) & 15;
                        y[at] = d1 * (f32::from(q) + if high[l] & u != 0 { 16.0 } else { 0.0 }) - m1;
                        at += 1;
                    }
                    u = u.wrapping_shl(1);
                }
                ql = &ql[32..];
            }
        }
        GgmlBlock::Q6_K => {
            let d = half(&b[208..]);
            for n in 0..2 {
                let (ql, qh, sc) = (&b[64 * n..], &b[128 + 32 * n..], &b[192 + 8 * n..]);
                for l in 0..32 {
                    let is = l / 16;
                    let q = [
                        (ql[l] & 15) | ((qh[l] & 3) << 4),
                        (ql[l + 32] & 15) | (((qh[l] >> 2) & 3) << 4),
                        (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4),
                        (ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4),
                    ];
                    for (k, q) in q.into_iter().enumerate() {
                        y[128 * n + 32 * k + l] = d * f32::from(sc[is + 2 * k] as i8) * (f32::from(q) - 32.0);
                    }
                }
            }
        }
    }
    y
}

/// Offsets of the f16 fields of a block.
fn halves(block: GgmlBlock) -> &'static [usize] {
    match block {
        GgmlBlock::Q4_0 | GgmlBlock::Q5_0 | GgmlBlock::Q8_0 | GgmlBlock::IQ4_NL => &[0],
        GgmlBlock::Q4_1 | GgmlBlock::Q5_1 | GgmlBlock::Q4_K | GgmlBlock::Q5_K => &[0, 2],
        GgmlBlock::Q2_K => &[80, 82],
        GgmlBlock::Q3_K => &[108],
        GgmlBlock::Q6_K => &[208],
    }
}

/// Blocks of random bytes, and blocks that repeat one byte. All f16 fields are finite.
fn blocks(random: &mut Random, block: GgmlBlock, count: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for index in 0..count {
        let fill = [0, 0xff, 0x80, 0x7f].get(index).copied();
        let mut b: Vec<u8> = (0..block.bytes()).map(|_| fill.unwrap_or(random.next() as u8)).collect();
        // Any finite f16: also the reduce_max, the smallest denormal, zeros of both signs.
        for &at in halves(block) {
            let bits = match index % 16 {
                0 => 0x7bff,
                1 => 0x8001,
                2 => 0x8000,
                3 => 0x0001,
                _ => loop {
                    let bits = random.next() as u16;
                    if f16::from_bits(bits).is_finite() {
                        break bits;
                    }
                },
            };
            b[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
        data.extend(b);
    }
    data
}

fn packed(block: GgmlBlock, rows: usize, columns: usize, data: &[u8]) -> Packed {
    Packed::new(&Matrix::Blocks { rows, columns, block, data: data.into() }, &mut Arena::default(), &mut Pool::new(1))
        .expect("a supported shape")
}

#[test]
fn a_packed_block_matches_ggml_to_the_bit() {
    let mut random = Random(11);
    for block in GgmlBlock::ALL {
        let (rows, columns) = (61, 512);
        let data = blocks(&mut random, block, rows * columns / block.elements());
        let packed = packed(block, rows, columns, &data);
        let mut row = vec![0f32; columns];
        for (r, data) in data.chunks_exact(data.len() / rows).enumerate() {
            // SAFETY: this CPU has the kernels' instruction set.
            unsafe { (Kernels::all()[0].row)(&packed, r, &mut row) };
            let want = data.chunks_exact(block.bytes()).flat_map(|b| definition(block, b));
            for (i, (got, want)) in row.iter().zip(want).enumerate() {
                // Adding 0 makes -0 equal to 0: ggml's products can be -0, `q * scale + bias` cannot.
                assert_eq!((got + 0.0).to_bits(), (want + 0.0).to_bits(), "{block:?} row {r} input {i}: {got} is not {want}");
            }
        }
    }
}

#[test]
fn block_products_match_the_definition_on_every_instruction_set() {
    let mut random = Random(12);
    for block in GgmlBlock::ALL {
        let (rows, columns) = (19, 512);
        let mut data = blocks(&mut random, block, rows * columns / block.elements());
        // Scales of one magnitude, so that one tolerance fits all.
        for b in data.chunks_exact_mut(block.bytes()) {
            halves(block).iter().for_each(|&at| b[at..at + 2].copy_from_slice(&f16::from_f32(0.001 * random.float()).to_le_bytes()));
        }
        let weight = packed(block, rows, columns, &data);
        let values: Vec<f32> = data.chunks_exact(block.bytes()).flat_map(|b| definition(block, b)).collect();
        let all = random.floats(131 * columns);
        let mut most: Option<(Vec<f32>, Vec<f32>)> = None;
        for x_rows in [131, 1, 2, 3, 4, 5, 7] {
            let x = &all[..x_rows * columns];
            let results = Kernels::all().into_iter().map(|kernels| {
                let quantized = quantize(kernels, x, x_rows, weight.kind.activation_quant().expect("integers"));
                let exact = product(kernels, &weight, Operand::F32(x), x_rows);
                (exact, product(kernels, &weight, Operand::Int8(&quantized), x_rows))
            });
            let results: Vec<_> = results.collect();
            assert!(results.iter().all(|result| result == &results[0]), "{block:?}: instruction sets differ");
            let (exact, int8) = most.get_or_insert_with(|| results[0].clone());
            let count = x_rows * rows;
            assert!(results[0].0 == exact[..count] && results[0].1 == int8[..count], "{block:?}: {x_rows} rows differ");
            for (i, (exact, int8)) in results[0].0.iter().zip(&results[0].1).enumerate() {
                let pairs = || x[i / rows * columns..][..columns].iter().zip(&values[i % rows * columns..]);
                let want: f64 = pairs().map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let size: f64 = pairs().map(|(_, w)| f64::from(w.abs())).sum();
                assert!((f64::from(*exact) - want).abs() <= 1e-5 * size, "{block:?} rows {x_rows}: {exact} is not {want}");
                // Half a quantization step per activation, if all errors had the same sign.
                assert!((f64::from(*int8) - want).abs() <= size / 254.0, "{block:?} rows {x_rows}: {int8} is not {want}");
            }
        }
    }
}
