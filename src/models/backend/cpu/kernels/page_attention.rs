//! Attention of a tile of queries to one KV page: the partial results that split-KV attention combines.

use super::super::buffer::Buffer;
use super::super::isa::{Isa, LANES, exp, reduce_sum};
use super::super::kv_cache::{KvShape, PAGE_TOKENS};
use super::kv_page::{PrefetchPlan, load};
use std::sync::Arc;

/// Floats of one query's partial result over one page: `[0]` is the largest score, `[1]` the sum of the softmax weights
/// relative to it, and `head_dim` values from `LANES` on are the weighted sum of the values.
pub(in super::super) fn partial_len(head_dim: usize) -> usize {
    LANES + head_dim
}

/// `rows` consecutive rows of one sequence, with all query heads that share one KV head.
///
/// Its queries are numbered row by row: query `i` is head `i % group_size` of row `i / group_size`.
pub(in super::super) struct QueryTile<'a> {
    /// The KV pages of the sequence.
    pub(in super::super) pages: &'a [Arc<Buffer>],
    pub(in super::super) shape: KvShape,
    pub(in super::super) layer: usize,
    pub(in super::super) kv_head: usize,
    /// Query heads per KV head (grouped-query attention).
    pub(in super::super) group_size: usize,
    /// Position of the first row.
    pub(in super::super) position: usize,
    pub(in super::super) rows: usize,
    /// Rotated and scaled queries, from the first query of the tile on.
    pub(in super::super) q: &'a [f32],
    /// Floats from one row of `q` to the next.
    pub(in super::super) q_stride: usize,
}

impl QueryTile<'_> {
    pub(in super::super) fn queries(&self) -> usize {
        self.rows * self.group_size
    }

    /// Positions of page `page` that a query attends to.
    pub(super) fn kv_len(&self, query: usize, page: usize) -> usize {
        (self.position + query / self.group_size + 1).saturating_sub(page * PAGE_TOKENS).min(PAGE_TOKENS)
    }

    /// The first query that attends to a position of page `page`. The causal mask hides the page from all queries before it.
    pub(in super::super) fn first_visible(&self, page: usize) -> usize {
        (page * PAGE_TOKENS).saturating_sub(self.position) * self.group_size
    }

    /// Pages that the last row attends to.
    pub(in super::super) fn kv_pages(&self) -> usize {
        (self.position + self.rows).div_ceil(PAGE_TOKENS)
    }

    /// Panics unless the slices are as long as the kernels read.
    pub(super) fn check(&self) {
        let Self { shape, group_size, rows, .. } = *self;
        assert!(self.layer < shape.layers && self.kv_head < shape.kv_heads, "the head is not in the cache");
        assert!(rows > 0 && group_size > 0 && self.kv_pages() <= self.pages.len(), "the cache does not hold the tile's positions");
        assert!(self.q.len() >= (rows - 1) * self.q_stride + group_size * shape.head_dim, "q does not hold the tile's queries");
    }
}

/// Computes the partial results of one page, `[query][partial_len]`. Those of queries before `first_visible` stay unwritten.
///
/// # Safety
/// The processor has the instruction set. The tile passes `check`, and the page holds every position up to the last row's;
/// `page < tile.kv_pages()`. `scores` is `[query][PAGE_TOKENS]`, and `partials` has room for every query.
#[inline(always)]
pub(super) unsafe fn page_partials<S: Isa>(tile: &QueryTile<'_>, page: usize, scores: *mut f32, partials: *mut f32) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if tile.shape.half {
            partials_of::<S, true>(tile, page, scores, partials)
        } else {
            partials_of::<S, false>(tile, page, scores, partials)
        }
    }
}

#[inline(always)]
unsafe fn partials_of<S: Isa, const HALF: bool>(tile: &QueryTile<'_>, page: usize, scores: *mut f32, partials: *mut f32) {
    let (head_dim, group_size, count, first) = (tile.shape.head_dim, tile.group_size, tile.queries(), tile.first_visible(page));
    let (key_offset, value_offset) = tile.shape.offsets(tile.layer, tile.kv_head);
    let block_bytes = 2 * LANES * head_dim * tile.shape.element_bytes();
    // SAFETY: guaranteed by the caller; queries and dimensions stay within rows, positions within the page.
    unsafe {
        let at = |page: &Buffer, offset: usize| page.as_ptr().add(offset).cast_const();
        let (keys, values) = (at(&tile.pages[page], key_offset), at(&tile.pages[page], value_offset));
        let passes = (count - first).div_ceil(4);
        for pass in 0..passes {
            let query = first + 4 * pass;
            let n = (count - query).min(4);
            let mut q = [tile.q.as_ptr(); 4];
            for (i, q) in q.iter_mut().enumerate().take(n) {
                *q = tile.q.as_ptr().add((query + i) / group_size * tile.q_stride + (query + i) % group_size * head_dim);
            }
            let (kv_len, to) = (tile.kv_len(query + n - 1, page), scores.add(query * PAGE_TOKENS));
            // The values are read after the scores.
            let prefetch = PrefetchPlan::pass(values, block_bytes, pass, passes);
            match n {
                1 => score::<S, HALF, 1>(keys, head_dim, &q, kv_len, prefetch, to),
                2 => score::<S, HALF, 2>(keys, head_dim, &q, kv_len, prefetch, to),
                3 => score::<S, HALF, 3>(keys, head_dim, &q, kv_len, prefetch, to),
                _ => score::<S, HALF, 4>(keys, head_dim, &q, kv_len, prefetch, to),
            }
        }
        // Up to four heads of one row share a pass over the values.
        let heads = group_size.div_ceil(group_size.div_ceil(4));
        let next = tile.pages[..tile.kv_pages()].get(page + 1);
        let (passes, mut pass) = ((count - first) / group_size * group_size.div_ceil(heads), 0);
        let mut query = first;
        while query < count {
            let n = heads.min(group_size - query % group_size);
            let (kv_len, weights) = (tile.kv_len(query, page), scores.add(query * PAGE_TOKENS));
            let partial = partials.add(query * partial_len(head_dim));
            for i in 0..n {
                let partial = partial.add(i * partial_len(head_dim));
                (*partial, *partial.add(1)) = softmax::<S>(weights.add(i * PAGE_TOKENS), kv_len);
            }
            // The keys of the next page are read after these values.
            let prefetch = next.map_or(PrefetchPlan::none(), |next| PrefetchPlan::pass(at(next, key_offset), block_bytes, pass, passes));
            let to = partial.add(LANES);
            match n {
                1 => weighted_values::<S, HALF, 1>(values, head_dim, kv_len, prefetch, weights, to),
                2 => weighted_values::<S, HALF, 2>(values, head_dim, kv_len, prefetch, weights, to),
                3 => weighted_values::<S, HALF, 3>(values, head_dim, kv_len, prefetch, weights, to),
                _ => weighted_values::<S, HALF, 4>(values, head_dim, kv_len, prefetch, weights, to),
            }
            query += n;
            pass += 1;
        }
    }
}

/// Computes the scores (q·k) of N queries for the first `kv_len` positions, in blocks of sixteen: `out` is `[N][PAGE_TOKENS]`.
#[inline(always)]
unsafe fn score<S: Isa, const HALF: bool, const N: usize>(
    keys: *const u8,
    head_dim: usize,
    q: &[*const f32; 4],
    kv_len: usize,
    prefetch: PrefetchPlan,
    out: *mut f32,
) {
    // SAFETY: a page has 256 positions, so a block of sixteen from any multiple of sixteen below `kv_len` is inside.
    unsafe {
        for block in (0..kv_len).step_by(2 * LANES) {
            prefetch.fetch::<S>(block);
            let mut sums = [[S::zero(); 2]; N];
            for d in 0..head_dim {
                let a = load::<S, HALF>(keys, block * head_dim + d * LANES);
                let b = load::<S, HALF>(keys, (block + LANES) * head_dim + d * LANES);
                for (sums, q) in sums.iter_mut().zip(q) {
                    let q = S::splat(*q.add(d));
                    sums[0] = S::fma(a, q, sums[0]);
                    sums[1] = S::fma(b, q, sums[1]);
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                S::store(out.add(i * PAGE_TOKENS + block), sums[0]);
                S::store(out.add(i * PAGE_TOKENS + block + LANES), sums[1]);
            }
        }
    }
}

/// Replaces scores by softmax weights `e^(score - maximum)`, without dividing by their sum. Returns the maximum and the sum.
/// Weights from `length` up to the next multiple of 8 are 0.
#[inline(always)]
unsafe fn softmax<S: Isa>(p: *mut f32, length: usize) -> (f32, f32) {
    // SAFETY: a query has `PAGE_TOKENS` scores.
    unsafe {
        for i in length..length.next_multiple_of(LANES) {
            *p.add(i) = f32::NEG_INFINITY;
        }
        let mut maximum = S::splat(f32::NEG_INFINITY);
        for i in (0..length).step_by(LANES) {
            maximum = S::max(S::load(p.add(i)), maximum);
        }
        let maximum = S::reduce_max(maximum);
        let mut total = S::zero();
        for i in (0..length).step_by(LANES) {
            let e = exp::<S>(S::sub(S::load(p.add(i)), S::splat(maximum)));
            S::store(p.add(i), e);
            total = S::add(total, e);
        }
        (maximum, reduce_sum::<S>(total))
    }
}

/// `sum over positions of weight * value`, in position order, for N queries: `weights` is `[N][PAGE_TOKENS]`, `out` is
/// `[N][partial_len]`.
///
/// The dimensions are divided so that about eight accumulators are in use: that many hide the latency of two fused
/// multiply-adds a cycle. More queries per pass mean fewer loads and conversions of the values.
#[inline(always)]
unsafe fn weighted_values<S: Isa, const HALF: bool, const N: usize>(
    values: *const u8,
    head_dim: usize,
    kv_len: usize,
    prefetch: PrefetchPlan,
    weights: *const f32,
    out: *mut f32,
) {
    // SAFETY: guaranteed by the caller: `kv_len` positions of `head_dim` dimensions, a multiple of 16.
    unsafe {
        let mut d = 0;
        while d < head_dim {
            let prefetch = |vectors| prefetch.part(d, vectors * LANES, head_dim);
            d += match (head_dim - d) / LANES {
                8.. if N == 1 => weighted_dimensions::<S, HALF, N, 8>(values, head_dim, kv_len, prefetch(8), weights, d, out),
                4.. if N < 4 => weighted_dimensions::<S, HALF, N, 4>(values, head_dim, kv_len, prefetch(4), weights, d, out),
                _ => weighted_dimensions::<S, HALF, N, 2>(values, head_dim, kv_len, prefetch(2), weights, d, out),
            };
        }
    }
}

/// As `weighted_values`, for V vectors (8 V dimensions) from dimension `d` on. Returns the number of dimensions.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a part of `weighted_values`, inlined into it")]
unsafe fn weighted_dimensions<S: Isa, const HALF: bool, const N: usize, const V: usize>(
    values: *const u8,
    head_dim: usize,
    kv_len: usize,
    prefetch: PrefetchPlan,
    weights: *const f32,
    d: usize,
    out: *mut f32,
) -> usize {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sums = [[S::zero(); V]; N];
        for block in (0..kv_len).step_by(2 * LANES) {
            prefetch.fetch::<S>(block);
            for t in block..kv_len.min(block + 2 * LANES) {
                let weights: [S::F32x8; N] = std::array::from_fn(|i| S::splat(*weights.add(i * PAGE_TOKENS + t)));
                for (j, at) in (0..V).zip((t * head_dim + d..).step_by(LANES)) {
                    let v = load::<S, HALF>(values, at);
                    for (sums, weight) in sums.iter_mut().zip(weights) {
                        sums[j] = S::fma(v, weight, sums[j]);
                    }
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                S::store(out.add(i * partial_len(head_dim) + d + j * LANES), *sum);
            }
        }
    }
    V * LANES
}
