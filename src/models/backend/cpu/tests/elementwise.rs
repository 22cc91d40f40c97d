//! Elementwise kernels and the quantization of activations.

use super::super::kernels::Kernels;
use super::super::weights::layout::ActivationQuant;
use super::{Random, quantize};

#[test]
fn extreme_activations_are_quantized_without_overflow() {
    const QUANT: ActivationQuant = ActivationQuant { scale_group: 32, sum_group: 32, integer_sums: false };
    for kernels in Kernels::all() {
        let mut x = vec![0.0f32; 64];
        let zero = quantize(kernels, &x, 1, QUANT);
        assert_eq!((zero.scales[0], zero.sums[0], zero.q[0]), (0.0, 0.0, 0));
        x[3] = -1e30;
        x[40] = 1e-40;
        let quantized = quantize(kernels, &x, 1, QUANT);
        assert_eq!((quantized.q[3], quantized.q[40]), (-127, 0), "{}", kernels.name);
        (x[4], x[50]) = (f32::NAN, f32::NEG_INFINITY);
        let quantized = quantize(kernels, &x, 1, QUANT);
        assert_eq!(
            (quantized.q[3], quantized.q[4], quantized.q[50], quantized.scales[1]),
            (-127, -127, -127, f32::INFINITY),
            "{}",
            kernels.name
        );
    }
}

#[test]
fn norm_and_gate_match_their_definitions() {
    let mut random = Random(4);
    let (x, weight) = (random.floats(96), random.floats(96));
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 96.0;
    for kernels in Kernels::all() {
        let mut y = vec![0.0; 96];
        // SAFETY: this CPU has the kernels' instruction set; all slices have one length.
        unsafe { (kernels.norm)(&x, &weight, 1e-5, &mut y) };
        let mut gate: Vec<f32> = x.iter().map(|x| x * 100.0).collect();
        // SAFETY: as above.
        unsafe { (kernels.gate_silu)(&mut gate, &weight) };
        for i in 0..96 {
            let (x, w) = (f64::from(x[i]), f64::from(weight[i]));
            assert!((f64::from(y[i]) - x / (mean + 1e-5).sqrt() * w).abs() < 1e-5);
            let g = x * 100.0;
            assert!((f64::from(gate[i]) - g / (1.0 + (-g).exp()) * w).abs() < 1e-4, "{}", gate[i]);
        }
    }
}

#[test]
fn elementwise_kernels_are_the_same_on_every_instruction_set() {
    let mut random = Random(5);
    let (x, y) = (random.floats(96).iter().map(|x| x * 30.0).collect::<Vec<_>>(), random.floats(96));
    let all = Kernels::all().into_iter().map(|kernels| {
        let (mut norm, mut gate, mut sum, mut head) = (vec![0.0; 96], x.clone(), x.clone(), x.clone());
        // SAFETY: this CPU has the kernels' instruction set; all slices have one length, angles half of it.
        unsafe {
            (kernels.norm)(&x, &y, 1e-5, &mut norm);
            (kernels.gate_silu)(&mut gate, &y);
            (kernels.add)(&mut sum, &y);
            (kernels.rotate)(&mut head, &y[..48], &y[48..], 0.3);
        }
        [norm, gate, sum, head]
    });
    let all: Vec<_> = all.collect();
    let [_, _, sum, head] = &all[0];
    for i in 0..48 {
        let [a, b, cos, sin] = [x[i], x[i + 48], y[i], y[i + 48]].map(f64::from);
        assert!((f64::from(head[i]) - (a * cos - b * sin) * 0.3).abs() < 1e-5);
        assert!((f64::from(head[i + 48]) - (b * cos + a * sin) * 0.3).abs() < 1e-5);
        assert_eq!(sum[i], x[i] + y[i]);
    }
    assert!(all.iter().all(|results| results == &all[0]), "instruction sets differ");
}
