//! Kernels against the definition of what they compute, and every instruction set against the scalar reference, bit for bit.

mod attention;
mod elementwise;
mod ggml_blocks;
mod matmul;
mod misuse;

use super::isa::LANES;
use super::kernels::Kernels;
use super::kernels::quantize::QuantizedActivations;
use super::weights::layout::ActivationQuant;
use super::weights::pack::Packed;

/// xorshift64: a fixed seed gives the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// Uniform in -1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

fn quantize(kernels: &Kernels, x: &[f32], rows: usize, quant: ActivationQuant) -> QuantizedActivations {
    let columns = x.len() / rows;
    let mut quantized = QuantizedActivations::default();
    quantized.resize(rows, columns, quant);
    let out = quantized.writer();
    for row in 0..rows {
        // SAFETY: this CPU has the kernels' instruction set; `resize` made room for every row.
        unsafe { (kernels.quantize)(&x[row * columns..(row + 1) * columns], row, quant, out) };
    }
    quantized
}

/// The activations of a product.
#[derive(Clone, Copy)]
enum Operand<'a> {
    F32(&'a [f32]),
    Int8(&'a QuantizedActivations),
}

/// `x * weight^T`, `[rows][outputs]`.
fn product(kernels: &Kernels, weight: &Packed, input: Operand<'_>, rows: usize) -> Vec<f32> {
    let mut y = vec![0.0; rows * weight.rows];
    let mut sums = vec![0.0; rows * LANES];
    for panel in 0..weight.panels() {
        // SAFETY: this CPU has the kernels' instruction set; there are eight sums per row.
        unsafe {
            match input {
                Operand::F32(x) => (kernels.panel_f32)(weight, panel, x, rows, sums.as_mut_ptr()),
                Operand::Int8(x) => (kernels.panel_int8)(weight, panel, x, sums.as_mut_ptr()),
            }
        }
        for row in 0..rows {
            for lane in 0..LANES.min(weight.rows - panel * LANES) {
                y[row * weight.rows + panel * LANES + lane] = sums[row * LANES + lane];
            }
        }
    }
    y
}

#[test]
fn the_environment_chooses_the_kernels() {
    let wanted = std::env::var("SOUFFLEUR_ISA").unwrap_or_else(|_| Kernels::all()[0].name.to_owned());
    assert_eq!(Kernels::choose().expect("they run here").name, wanted);
}
