//! Attention of a tile of queries to all KV pages of their sequence, with an online softmax over the pages.
//!
//! A query's result depends only on its own sequence: scores and values are summed by absolute position, the context is
//! divided at page boundaries (not by threads or tiles), and the pages' partial results are combined in page order.

use super::super::isa::{Isa, LANES, exp};
use super::super::kv_cache::PAGE_TOKENS;
use super::page_attention::page_partials;
pub(in super::super) use super::page_attention::{QueryTile, partial_len};

/// Rows of one span (the new tokens of one sequence) that share a pass over the keys and values.
pub(in super::super) const TILE_ROWS: usize = 4;
/// Query heads per KV head: the largest group in use is 8 (Llama 3), 16 leaves room.
pub(in super::super) const GROUP_SIZE_MAX: usize = 16;
const QUERIES_MAX: usize = TILE_ROWS * GROUP_SIZE_MAX;
pub(in super::super) const HEAD_DIM_MAX: usize = 256;

/// The temporary memory of one thread for attention.
pub(in super::super) struct AttentionScratch {
    /// `[query][PAGE_TOKENS]`.
    scores: Vec<f32>,
    /// `[query][partial_len]`.
    partials: Vec<f32>,
}

impl Default for AttentionScratch {
    fn default() -> Self {
        Self { scores: vec![0.0; QUERIES_MAX * PAGE_TOKENS], partials: vec![0.0; QUERIES_MAX * partial_len(HEAD_DIM_MAX)] }
    }
}

impl QueryTile<'_> {
    /// Panics unless an `AttentionScratch` has room for the tile, and the tile's slices are as long as the kernels read.
    fn check_for_scratch(&self) {
        self.check();
        assert!(self.queries() <= QUERIES_MAX && self.shape.head_dim <= HEAD_DIM_MAX, "the tile is too large");
    }
}

/// Computes the tile's attention. Query heads of one row lie side by side in `out`, rows `stride` floats apart.
///
/// # Safety
/// The processor has the instruction set. `out` has room for the tile's rows. The pages hold every position up to the last
/// row's, and nothing writes to them.
#[inline(always)]
pub(super) unsafe fn attend<S: Isa>(tile: &QueryTile<'_>, scratch: &mut AttentionScratch, out: *mut f32, stride: usize) {
    tile.check_for_scratch();
    let (head_dim, partial_len) = (tile.shape.head_dim, partial_len(tile.shape.head_dim));
    let mut softmax = [OnlineSoftmax::default(); QUERIES_MAX];
    // SAFETY: guaranteed by the caller, and the check above.
    unsafe {
        let out_of = |query: usize| out.add(query / tile.group_size * stride + query % tile.group_size * head_dim);
        for page in 0..tile.kv_pages() {
            let partials = scratch.partials.as_mut_ptr();
            page_partials::<S>(tile, page, scratch.scores.as_mut_ptr(), partials);
            for (query, softmax) in softmax.iter_mut().enumerate().take(tile.queries()).skip(tile.first_visible(page)) {
                softmax.add::<S>(partials.add(query * partial_len), head_dim, out_of(query));
            }
        }
        for (query, softmax) in softmax.iter().enumerate().take(tile.queries()) {
            softmax.finish::<S>(head_dim, out_of(query));
        }
    }
}

/// Computes the partial results of one page, `[query][partial_len]`. Those of queries before `first_visible` stay unwritten.
///
/// # Safety
/// The processor has the instruction set. The pages hold every position up to the last row's, and nothing writes to them.
#[inline(always)]
pub(super) unsafe fn attend_page<S: Isa>(tile: &QueryTile<'_>, page: usize, scratch: &mut AttentionScratch, partials: &mut [f32]) {
    tile.check_for_scratch();
    assert!(page < tile.kv_pages());
    assert!(partials.len() >= tile.queries() * partial_len(tile.shape.head_dim));
    // SAFETY: guaranteed by the caller, and the checks above.
    unsafe { page_partials::<S>(tile, page, scratch.scores.as_mut_ptr(), partials.as_mut_ptr()) }
}

/// Combines a query's partial results, `[page][partial_len]` in page order, to its result, `[head_dim]`.
///
/// # Safety
/// The processor has the instruction set.
#[inline(always)]
pub(super) unsafe fn combine<S: Isa>(partials: &[f32], out: &mut [f32]) {
    assert!(out.len().is_multiple_of(LANES) && partials.len() >= partial_len(out.len()));
    let mut softmax = OnlineSoftmax::default();
    // SAFETY: a partial result has as many values as `out`, which is whole vectors.
    unsafe {
        for partial in partials.chunks_exact(partial_len(out.len())) {
            softmax.add::<S>(partial.as_ptr(), out.len(), out.as_mut_ptr());
        }
        softmax.finish::<S>(out.len(), out.as_mut_ptr());
    }
}

/// The state of an online softmax (Milakov and Gimelshein 2018) after some pages. The weighted sum of the values so far is
/// kept where the result will be.
#[derive(Clone, Copy)]
struct OnlineSoftmax {
    maximum: f32,
    sum: f32,
}

impl Default for OnlineSoftmax {
    fn default() -> Self {
        Self { maximum: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl OnlineSoftmax {
    /// Rescales the sums so far to the new maximum, and adds one page's partial result.
    #[inline(always)]
    unsafe fn add<S: Isa>(&mut self, partial: *const f32, head_dim: usize, out: *mut f32) {
        // SAFETY: guaranteed by the caller: a partial result and a result of `head_dim`.
        unsafe {
            let (maximum, total, values) = (*partial, *partial.add(1), partial.add(LANES));
            // Nothing was added yet, so `out` has unspecified values.
            let is_first = self.maximum == f32::NEG_INFINITY;
            let new = if maximum > self.maximum { maximum } else { self.maximum };
            let (before, now) = (exp_one::<S>(self.maximum - new), exp_one::<S>(maximum - new));
            *self = Self { maximum: new, sum: self.sum * before + total * now };
            for d in (0..head_dim).step_by(LANES) {
                let old = if is_first { S::zero() } else { S::load(out.add(d)) };
                S::store(out.add(d), S::fma(S::load(values.add(d)), S::splat(now), S::mul(old, S::splat(before))));
            }
        }
    }

    /// Divides the weighted sum by the sum of the weights.
    #[inline(always)]
    unsafe fn finish<S: Isa>(&self, head_dim: usize, out: *mut f32) {
        // SAFETY: guaranteed by the caller: a result of `head_dim`.
        unsafe {
            let scale = S::splat(1.0 / self.sum);
            for d in (0..head_dim).step_by(LANES) {
                S::store(out.add(d), S::mul(S::load(out.add(d)), scale));
            }
        }
    }
}

/// `e^x` of one number, as `exp` computes it.
#[inline(always)]
unsafe fn exp_one<S: Isa>(x: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    // SAFETY: eight lanes to eight floats.
    unsafe { S::store(lanes.as_mut_ptr(), exp::<S>(S::splat(x))) };
    lanes[0]
}
