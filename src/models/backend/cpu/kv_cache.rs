//! Keys and values of one sequence, in pages of 256 positions that forks share.
//!
//! ```text
//! page = [layer][kv head] { keys [block of 8 positions][dimension][8], values [position][dimension] }
//! ```
//!
//! Keys are interleaved for eight positions, so that a vector accumulates eight scores. Positions that were never written are
//! zero, and those beyond a sequence's length are finite and masked.

use super::buffer::Buffer;
use crate::failpoints::{self, Point};
use std::sync::Arc;

/// Positions of a page. Attention is summed page by page at absolute positions, so that no result depends on how a prompt is
/// divided into steps.
pub(super) const PAGE_TOKENS: usize = 256;

/// The dimensions of a KV cache: where each layer's keys and values are in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KvShape {
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// f16 elements; f32 otherwise.
    pub(super) half: bool,
}

impl KvShape {
    pub(super) fn element_bytes(self) -> usize {
        if self.half { 2 } else { 4 }
    }

    /// Bytes of one token's keys and values in all layers.
    pub(super) fn token_bytes(self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_dim * self.element_bytes()
    }

    fn head_bytes(self) -> usize {
        PAGE_TOKENS * self.head_dim * self.element_bytes()
    }

    fn page_bytes(self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_bytes()
    }

    /// The size of a page; `None` if it does not fit in an `isize`. All other sizes and offsets here are smaller.
    pub(super) fn checked_page_bytes(self) -> Option<usize> {
        let sizes = [self.kv_heads, 2, PAGE_TOKENS, self.head_dim, self.element_bytes()];
        let bytes = sizes.into_iter().try_fold(self.layers, usize::checked_mul)?;
        isize::try_from(bytes).is_ok().then_some(bytes)
    }

    /// Byte offsets of the keys and the values of a layer's head.
    pub(super) fn offsets(self, layer: usize, head: usize) -> (usize, usize) {
        let keys = (layer * self.kv_heads + head) * 2 * self.head_bytes();
        (keys, keys + self.head_bytes())
    }
}

pub struct Cache {
    pub(super) shape: KvShape,
    pages: Vec<Arc<Buffer>>,
    length: usize,
}

impl Cache {
    pub(super) fn new(shape: KvShape) -> Self {
        Self { shape, pages: Vec::new(), length: 0 }
    }

    /// Full pages are shared; the last, partly filled one is copied when either side next writes to it.
    pub(super) fn fork(&self, length: usize) -> Self {
        assert!(length <= self.length, "a fork can't be longer than its origin");
        Self { shape: self.shape, pages: self.pages[..length.div_ceil(PAGE_TOKENS)].to_vec(), length }
    }

    pub(super) fn truncate(&mut self, length: usize) {
        assert!(length <= self.length, "truncating can't lengthen");
        self.pages.truncate(length.div_ceil(PAGE_TOKENS));
        self.length = length;
    }

    pub(super) fn bytes(&self) -> usize {
        self.pages.len() * self.shape.page_bytes()
    }

    /// Makes `count` positions from `position` on writable: allocates what is missing, copies what is shared.
    pub(super) fn reserve(&mut self, position: usize, count: usize) {
        assert_eq!(position, self.length, "a span goes on where its cache ends");
        failpoints::at(Point::Reserve, None);
        self.length = position + count;
        self.pages.resize_with(self.length.div_ceil(PAGE_TOKENS), || Arc::new(Buffer::zeroed(self.shape.page_bytes())));
        for page in &mut self.pages[position / PAGE_TOKENS..] {
            Arc::make_mut(page);
        }
    }

    /// Whether this cache is `length` long and consists of these pages.
    pub(super) fn holds(&self, length: usize, pages: &[Arc<Buffer>]) -> bool {
        self.length == length && self.pages.len() == pages.len() && self.pages.iter().zip(pages).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    pub(super) fn pages(&self) -> Vec<Arc<Buffer>> {
        self.pages.clone()
    }

    /// The memory of a page, to write to. A page is written to between `reserve`, which makes it this cache's alone, and the
    /// end of the step. Until then only that step holds it too: its stragglers may read other layers of the page.
    pub(super) fn page_ptr(&self, page: usize) -> *mut u8 {
        let page = &self.pages[page];
        assert!(Arc::strong_count(page) <= 2, "a page that another cache shares is not written to");
        page.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "another cache shares")]
    fn a_page_that_was_forked_after_it_was_reserved_is_not_written_to() {
        let mut cache = Cache::new(KvShape { layers: 1, kv_heads: 1, head_dim: 16, half: true });
        cache.reserve(0, 1);
        let _step = cache.pages();
        let _fork = cache.fork(1);
        cache.page_ptr(0);
    }
}
