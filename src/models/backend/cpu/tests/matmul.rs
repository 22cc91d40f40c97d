//! Packing and products of float weights and of MLX's affine quantization.

use super::super::buffer::Arena;
use super::super::kernels::Kernels;
use super::super::pool::Pool;
use super::super::weights::pack::Packed;
use super::{Operand, Random, product, quantize};
use crate::models::weights::{FloatType, Matrix, Quantization, Quantized};
use half::{bf16, f16};

/// A weight in MLX's affine quantization or as floats, with its values by the format's definition.
struct Source {
    rows: usize,
    columns: usize,
    element: FloatType,
    quantization: Option<Quantization>,
    words: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
    values: Vec<f32>,
}

fn bytes(element: FloatType, values: &[f32]) -> Vec<u8> {
    let one = |x: &f32| match element {
        FloatType::F32 => x.to_le_bytes().to_vec(),
        FloatType::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        FloatType::Bf16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(one).collect()
}

impl Source {
    fn plain(random: &mut Random, rows: usize, columns: usize, element: FloatType) -> Self {
        let words = bytes(element, &random.floats(rows * columns));
        let values = (0..rows * columns).map(|i| element.get(&words, i)).collect();
        Self { rows, columns, element, quantization: None, words, scales: vec![], biases: vec![], values }
    }

    fn quantized(random: &mut Random, rows: usize, columns: usize, element: FloatType, bits: usize, group: usize) -> Self {
        let integers: Vec<u64> = (0..rows * columns).map(|_| random.next() % (1 << bits)).collect();
        let mut words = vec![0u8; rows * columns * bits / 8];
        for row in 0..rows {
            for column in 0..columns {
                for bit in 0..bits {
                    let at = row * columns * bits + column * bits + bit;
                    words[at / 8] |= ((integers[row * columns + column] >> bit & 1) as u8) << (at % 8);
                }
            }
        }
        let scales = bytes(element, &random.floats(rows * columns / group).iter().map(|x| x / 100.0).collect::<Vec<_>>());
        let biases = bytes(element, &random.floats(rows * columns / group));
        let value = |i: usize| integers[i] as f32 * element.get(&scales, i / group) + element.get(&biases, i / group);
        let values = (0..rows * columns).map(value).collect();
        let quantization = Some(Quantization { bits, group });
        Self { rows, columns, element, quantization, words, scales, biases, values }
    }

    fn packed(&self) -> Packed {
        let (rows, columns, element) = (self.rows, self.columns, self.element);
        let matrix = match self.quantization {
            None => Matrix::Plain { rows, columns, element, data: (&*self.words).into() },
            Some(quantization) => {
                let (words, scales, biases) = (&self.words[..], &self.scales[..], &self.biases[..]);
                Matrix::Quantized(Quantized { rows, columns, quantization, words, element, scales, biases })
            }
        };
        Packed::new(&matrix, &mut Arena::default(), &mut Pool::new(1)).expect("a supported shape")
    }

    fn all(random: &mut Random) -> Vec<Self> {
        let mut all = Vec::new();
        for element in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            all.push(Self::plain(random, 24, 64, element));
            all.push(Self::plain(random, 3, 96, element));
            for bits in [2, 3, 4, 5, 6, 8] {
                for group in [32, 64, 128] {
                    all.push(Self::quantized(random, 21, 128 * 3, element, bits, group));
                }
            }
        }
        all
    }
}

#[test]
fn a_packed_weight_equals_the_file() {
    for source in Source::all(&mut Random(1)) {
        let packed = source.packed();
        let mut row = vec![0.0; source.columns];
        for r in 0..source.rows {
            // SAFETY: this CPU has the kernels' instruction set.
            unsafe { (Kernels::all()[0].row)(&packed, r, &mut row) };
            for (got, want) in row.iter().zip(&source.values[r * source.columns..]) {
                assert!(
                    (got - want).abs() <= 1e-6 * want.abs().max(1.0),
                    "{:?} {:?}: {got} is not {want}",
                    source.element,
                    source.quantization
                );
            }
        }
    }
}

#[test]
fn products_match_the_definition_on_every_instruction_set() {
    let mut random = Random(2);
    for source in Source::all(&mut random) {
        let weight = source.packed();
        let all = random.floats(131 * source.columns);
        let mut most_rows: Vec<Vec<f32>> = vec![Vec::new(); 2];
        for rows in [131, 1, 2, 3, 4, 5, 7, 16] {
            let x = &all[..rows * source.columns];
            let exact = |row: usize, output: usize| -> f64 {
                let pairs = x[row * source.columns..(row + 1) * source.columns].iter().zip(&source.values[output * source.columns..]);
                pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            };
            let mut results: Vec<(f32, Vec<Vec<f32>>)> = vec![(1e-4, Vec::new()), (0.25, Vec::new())];
            for kernels in Kernels::all() {
                results[0].1.push(product(kernels, &weight, Operand::F32(x), rows));
                if source.quantization.is_some() {
                    let quantized = quantize(kernels, x, rows, weight.kind.activation_quant().expect("integers"));
                    results[1].1.push(product(kernels, &weight, Operand::Int8(&quantized), rows));
                }
            }
            for ((tolerance, results), most) in results.into_iter().zip(&mut most_rows) {
                for result in &results {
                    assert_eq!(result, &results[0], "{:?} {:?}: instruction sets differ", source.element, source.quantization);
                    if most.is_empty() {
                        most.clone_from(result);
                    }
                    assert_eq!(result, &most[..result.len()], "{:?} {:?}: {rows} rows differ", source.element, source.quantization);
                }
                for (i, got) in results.first().into_iter().flatten().enumerate() {
                    let want = exact(i / source.rows, i % source.rows);
                    assert!(
                        (f64::from(*got) - want).abs() < f64::from(tolerance),
                        "{:?} {:?} rows {rows}: {got} is not {want}",
                        source.element,
                        source.quantization
                    );
                }
            }
        }
    }
}
