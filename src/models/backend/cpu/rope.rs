//! Rotary position embedding (Su et al. 2021): the angles by which the pairs of a head's dimensions are rotated.

use super::kv_cache::PAGE_TOKENS;
use crate::models::network::RopeSpec;

/// Cosines and sines of every position, extended as needed: `[position][head_dim / 2]`.
pub(super) struct Rope {
    spec: Option<RopeSpec>,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Without a spec nothing is rotated: all angles are zero.
    pub(super) fn new(spec: Option<RopeSpec>, head_dim: usize) -> Self {
        Self { spec, half: head_dim / 2, cos: Vec::new(), sin: Vec::new() }
    }

    pub(super) fn spec(&self) -> Option<RopeSpec> {
        self.spec
    }

    /// Computes the angles of the first `positions` positions.
    pub(super) fn extend_to(&mut self, positions: usize) {
        let computed = self.cos.len() / self.half;
        for position in computed..positions.next_multiple_of(PAGE_TOKENS).max(computed) {
            for i in 0..self.half {
                let frequency = self.spec.map_or(0.0, |rope| f64::from(rope.theta).powf(-(i as f64) / self.half as f64));
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Cosines and sines of one position, `[head_dim / 2]` each.
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
