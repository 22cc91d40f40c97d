//! Rotary positions (Su et al. 2021): the angles by which a head's pairs are turned.

use super::cache::CHUNK;

/// Angles of every position, made as far as they are needed.
pub(super) struct Rope {
    base: f32,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    pub(super) fn new(base: f32, head_size: usize) -> Self {
        Self { base, half: head_size / 2, cos: Vec::new(), sin: Vec::new() }
    }

    /// Makes the angles of at least this many positions.
    pub(super) fn reach(&mut self, positions: usize) {
        let have = self.cos.len() / self.half;
        for position in have..positions.next_multiple_of(CHUNK).max(have) {
            for i in 0..self.half {
                let frequency = f64::from(self.base).powf(-(i as f64) / self.half as f64);
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
