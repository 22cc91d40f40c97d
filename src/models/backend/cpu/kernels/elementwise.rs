//! Elementwise kernels, on one row of activations: norm, gated activation, addition, rotary embedding.

use super::super::isa::{Isa, LANES, exp, reduce_sum};

/// RMS norm: `out = x / sqrt(mean(x^2) + epsilon) * weight`.
///
/// # Safety
/// The processor has the instruction set. The three slices have one length, a multiple of 8.
#[inline(always)]
pub(super) unsafe fn norm<S: Isa>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    // SAFETY: guaranteed by the caller: one length, whole vectors.
    unsafe {
        let mut squares = S::zero();
        for i in (0..x.len()).step_by(LANES) {
            let v = S::load(x.as_ptr().add(i));
            squares = S::fma(v, v, squares);
        }
        let scale = S::splat(1.0 / (reduce_sum::<S>(squares) / x.len() as f32 + epsilon).sqrt());
        for i in (0..x.len()).step_by(LANES) {
            let scaled = S::mul(S::load(x.as_ptr().add(i)), scale);
            S::store(out.as_mut_ptr().add(i), S::mul(scaled, S::load(weight.as_ptr().add(i))));
        }
    }
}

/// SwiGLU: `gate = silu(gate) * up`, with `silu(x) = x / (1 + e^-x)` computed from `e^-|x|`, which cannot overflow.
///
/// # Safety
/// The processor has the instruction set. Both slices have one length, a multiple of 8.
#[inline(always)]
pub(super) unsafe fn gate_silu<S: Isa>(gate: &mut [f32], up: &[f32]) {
    // SAFETY: guaranteed by the caller: one length, whole vectors.
    unsafe {
        let one = S::splat(1.0);
        for i in (0..gate.len()).step_by(LANES) {
            let x = S::load(gate.as_ptr().add(i));
            let e = exp::<S>(S::sub(S::zero(), S::abs(x)));
            let numerator = S::select_less(x, S::zero(), e, one);
            let silu = S::div(S::mul(x, numerator), S::add(one, e));
            S::store(gate.as_mut_ptr().add(i), S::mul(silu, S::load(up.as_ptr().add(i))));
        }
    }
}

/// `x += y`.
///
/// # Safety
/// The processor has the instruction set. Both slices have one length, a multiple of 8.
#[inline(always)]
pub(super) unsafe fn add<S: Isa>(x: &mut [f32], y: &[f32]) {
    // SAFETY: guaranteed by the caller: one length, whole vectors.
    unsafe {
        for i in (0..x.len()).step_by(LANES) {
            S::store(x.as_mut_ptr().add(i), S::add(S::load(x.as_ptr().add(i)), S::load(y.as_ptr().add(i))));
        }
    }
}

/// Rotary embedding of one head: rotates the pairs (i, i + half) by the position's angles, and multiplies by `scale`.
///
/// # Safety
/// The processor has the instruction set. `cos` and `sin` have one length, a multiple of 8; `head` has twice that length.
#[inline(always)]
pub(super) unsafe fn rotate<S: Isa>(head: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    let half = cos.len();
    // SAFETY: guaranteed by the caller: whole vectors in both halves.
    unsafe {
        let (low, high) = (head.as_mut_ptr(), head.as_mut_ptr().add(half));
        let scale = S::splat(scale);
        for i in (0..half).step_by(LANES) {
            let (cos, sin) = (S::mul(S::load(cos.as_ptr().add(i)), scale), S::mul(S::load(sin.as_ptr().add(i)), scale));
            let (a, b) = (S::load(low.add(i)), S::load(high.add(i)));
            S::store(low.add(i), S::sub(S::mul(a, cos), S::mul(b, sin)));
            S::store(high.add(i), S::fma(b, cos, S::mul(a, sin)));
        }
    }
}
