//! Keys and values of one sequence, in chunks of 256 positions that forks share.
//!
//! ```text
//! chunk = [layer][kv head] { keys [block of 8 positions][dimension][8], values [position][dimension] }
//! ```
//!
//! Keys lie dimension by dimension for eight positions, so that eight scores grow in eight lanes. Positions
//! that were never written are zero, and those beyond a sequence's length are finite and masked.

use super::buffer::Buffer;
use crate::failpoints::{self, Point};
use std::sync::Arc;

/// Positions of a chunk. Attention is summed chunk by chunk at absolute positions, so it must not depend on the step.
pub(super) const CHUNK: usize = 256;

/// Where one layer's keys and values are in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head_size: usize,
    /// f16 elements; f32 otherwise.
    pub(super) half: bool,
}

impl Shape {
    pub(super) fn element_bytes(self) -> usize {
        if self.half { 2 } else { 4 }
    }

    /// Bytes of one token's keys and values in all layers.
    pub(super) fn token_bytes(self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_size * self.element_bytes()
    }

    fn head_bytes(self) -> usize {
        CHUNK * self.head_size * self.element_bytes()
    }

    fn chunk_bytes(self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_bytes()
    }

    /// Byte offsets of the keys and the values of a layer's head.
    pub(super) fn offsets(self, layer: usize, head: usize) -> (usize, usize) {
        let keys = (layer * self.kv_heads + head) * 2 * self.head_bytes();
        (keys, keys + self.head_bytes())
    }
}

pub struct Cache {
    pub(super) shape: Shape,
    chunks: Vec<Arc<Buffer>>,
    length: usize,
}

impl Cache {
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape, chunks: Vec::new(), length: 0 }
    }

    /// Full chunks are shared; the last, partly filled one is copied when either side next writes to it.
    pub(super) fn fork(&self, length: usize) -> Self {
        assert!(length <= self.length, "a fork can't be longer than its origin");
        Self { shape: self.shape, chunks: self.chunks[..length.div_ceil(CHUNK)].to_vec(), length }
    }

    pub(super) fn truncate(&mut self, length: usize) {
        assert!(length <= self.length, "truncating can't lengthen");
        self.chunks.truncate(length.div_ceil(CHUNK));
        self.length = length;
    }

    pub(super) fn bytes(&self) -> usize {
        self.chunks.len() * self.shape.chunk_bytes()
    }

    /// Makes `count` positions from `position` on writable: allocates what is missing, copies what is shared.
    pub(super) fn reserve(&mut self, position: usize, count: usize) {
        assert_eq!(position, self.length, "a span goes on where its cache ends");
        failpoints::at(Point::Reserve, None);
        self.length = position + count;
        self.chunks.resize_with(self.length.div_ceil(CHUNK), || Arc::new(Buffer::zeroed(self.shape.chunk_bytes())));
        for chunk in &mut self.chunks[position / CHUNK..] {
            Arc::make_mut(chunk);
        }
    }

    /// Whether this cache is `length` long and consists of these chunks.
    pub(super) fn holds(&self, length: usize, chunks: &[Arc<Buffer>]) -> bool {
        self.length == length && self.chunks.len() == chunks.len() && self.chunks.iter().zip(chunks).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    pub(super) fn chunks(&self) -> Vec<Arc<Buffer>> {
        self.chunks.clone()
    }

    /// A chunk to write to: one that `reserve` made writable is this cache's alone, late readers of other layers apart.
    pub(super) fn pointer(&self, chunk: usize) -> *mut u8 {
        self.chunks[chunk].as_ptr()
    }
}
