//! Attention of a few rows of one sequence over one key-value head, chunk by chunk.
//!
//! A query's result depends on its own length only: scores and values are summed over absolute positions,
//! chunks (not threads, not tiles) cut the context, and their partial results are merged in chunk order.

use super::buffer::Buffer;
use super::cache::{CHUNK, Shape};
use super::isa::{Isa, LANES, exp, sum};
use std::sync::Arc;

/// Rows of one span that share a pass over the keys and values.
pub(super) const ROWS: usize = 4;
/// Query heads that may share a key-value head times `ROWS`: the largest group in use is 8 (Llama 3), 16 leaves room.
const QUERIES: usize = ROWS * 16;
pub(super) const GROUP_MAX: usize = QUERIES / ROWS;
pub(super) const HEAD_MAX: usize = 256;

/// Scratch of one thread.
pub(super) struct Scratch {
    scores: Vec<f32>,
    partial: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { scores: vec![0.0; QUERIES * CHUNK], partial: vec![0.0; 2 * HEAD_MAX] }
    }
}

/// `rows` consecutive rows of one sequence against one key-value head.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) chunks: &'a [Arc<Buffer>],
    pub(super) shape: Shape,
    pub(super) layer: usize,
    pub(super) kv_head: usize,
    /// Query heads that share it.
    pub(super) group: usize,
    /// Position of the first row.
    pub(super) position: usize,
    pub(super) rows: usize,
    /// From the first row's first query head of this group on: rotated and scaled.
    pub(super) q: &'a [f32],
    /// Floats from one row to the next.
    pub(super) q_stride: usize,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
}

/// Writes one position's key and value of one head.
///
/// # Safety
/// `chunk` is writable and nobody else's; `key` and `value` have `head_size` floats.
#[inline(always)]
pub(super) unsafe fn append<S: Isa>(chunk: *mut u8, shape: Shape, layer: usize, head: usize, position: usize, key: &[f32], value: &[f32]) {
    let (keys, values) = shape.offsets(layer, head);
    let (at, size) = (position % CHUNK, shape.head_size);
    // SAFETY: offsets stay within the chunk.
    unsafe {
        let first = at / LANES * LANES * size + at % LANES;
        if shape.half {
            let k = chunk.add(keys).cast::<u16>().add(first);
            let v = chunk.add(values).cast::<u16>().add(at * size);
            let mut lanes = [0u16; LANES];
            for d in (0..size).step_by(LANES) {
                S::store_f16(lanes.as_mut_ptr(), S::load(key.as_ptr().add(d)));
                for (i, lane) in lanes.iter().enumerate() {
                    *k.add((d + i) * LANES) = *lane;
                }
                S::store_f16(v.add(d), S::load(value.as_ptr().add(d)));
            }
        } else {
            let k = chunk.add(keys).cast::<f32>().add(first);
            for (d, x) in key.iter().enumerate() {
                *k.add(d * LANES) = *x;
            }
            value.as_ptr().copy_to_nonoverlapping(chunk.add(values).cast::<f32>().add(at * size), size);
        }
    }
}

/// # Safety
/// The job's pointers reach its rows; the chunks hold every position up to its last row's.
#[inline(always)]
pub(super) unsafe fn attend<S: Isa>(job: &Job<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller's.
    unsafe { if job.shape.half { all_chunks::<S, true>(job, scratch) } else { all_chunks::<S, false>(job, scratch) } }
}

#[inline(always)]
unsafe fn load<S: Isa, const HALF: bool>(p: *const u8, index: usize) -> S::F {
    // SAFETY: the caller's.
    unsafe { if HALF { S::load_f16(p.cast::<u16>().add(index)) } else { S::load(p.cast::<f32>().add(index)) } }
}

#[inline(always)]
unsafe fn all_chunks<S: Isa, const HALF: bool>(job: &Job<'_>, scratch: &mut Scratch) {
    let Job { group, shape, .. } = *job;
    let size = shape.head_size;
    let count = job.rows * group;
    let (key_offset, value_offset) = shape.offsets(job.layer, job.kv_head);
    // Running maximum and sum of every query; its running values lie in `out`.
    let mut maxima = [f32::NEG_INFINITY; QUERIES];
    let mut sums = [0f32; QUERIES];
    // SAFETY: the caller's; queries and dimensions stay within rows, positions within the chunk.
    unsafe {
        let place = |query: usize, stride: usize| query / group * stride + query % group * size;
        let head = |query: usize| place(query, job.out_stride);
        for (index, chunk) in job.chunks.iter().enumerate() {
            let start = index * CHUNK;
            let length = |query: usize| (job.position + query / group + 1).saturating_sub(start).min(CHUNK);
            if length(count - 1) == 0 {
                break;
            }
            // Rows that end before this chunk come first.
            let mut first = 0;
            while length(first) == 0 {
                first += 1;
            }
            let (keys, values) = (chunk.as_ptr().add(key_offset).cast_const(), chunk.as_ptr().add(value_offset).cast_const());
            let scores = scratch.scores.as_mut_ptr();
            let mut query = first;
            while query < count {
                let n = (count - query).min(4);
                let mut q = [job.q.as_ptr(); 4];
                for (i, q) in q.iter_mut().enumerate().take(n) {
                    *q = job.q.as_ptr().add(place(query + i, job.q_stride));
                }
                let reach = length(query + n - 1);
                let to = scores.add(query * CHUNK);
                match n {
                    1 => score::<S, HALF, 1>((keys, values), size, &q, reach, to),
                    2 => score::<S, HALF, 2>((keys, values), size, &q, reach, to),
                    3 => score::<S, HALF, 3>((keys, values), size, &q, reach, to),
                    _ => score::<S, HALF, 4>((keys, values), size, &q, reach, to),
                }
                query += n;
            }
            let partial = scratch.partial.as_mut_ptr();
            let mut query = first;
            while query < count {
                // Two heads of one row read the values together.
                let n = if query % group + 1 < group { 2 } else { 1 };
                let p = scores.add(query * CHUNK);
                let mut parts = [(0f32, 0f32); 2];
                for (i, part) in parts.iter_mut().enumerate().take(n) {
                    *part = softmax::<S>(p.add(i * CHUNK), length(query));
                }
                match n {
                    1 => value::<S, HALF, 1>(values, size, length(query), p, partial),
                    _ => value::<S, HALF, 2>(values, size, length(query), p, partial),
                }
                for (i, (top, total)) in parts.into_iter().enumerate().take(n) {
                    let query = query + i;
                    // Merge: what came before is scaled to the new maximum, then this chunk's values are added.
                    let new = if top > maxima[query] { top } else { maxima[query] };
                    let (before, now) = (exp_one::<S>(maxima[query] - new), exp_one::<S>(top - new));
                    maxima[query] = new;
                    sums[query] = sums[query] * before + total * now;
                    let out = job.out.add(head(query));
                    for d in (0..size).step_by(LANES) {
                        let old = if index == 0 { S::zero() } else { S::load(out.add(d)) };
                        let part = S::load(partial.add(i * HEAD_MAX + d));
                        S::store(out.add(d), S::fma(part, S::splat(now), S::mul(old, S::splat(before))));
                    }
                }
                query += n;
            }
        }
        for (query, sum) in sums.iter().enumerate().take(count) {
            let out = job.out.add(head(query));
            let scale = S::splat(1.0 / sum);
            for d in (0..size).step_by(LANES) {
                S::store(out.add(d), S::mul(S::load(out.add(d)), scale));
            }
        }
    }
}

#[inline(always)]
unsafe fn exp_one<S: Isa>(x: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    // SAFETY: eight lanes to eight floats.
    unsafe { S::store(lanes.as_mut_ptr(), exp::<S>(S::splat(x))) };
    lanes[0]
}

/// Scores of N queries against the first `reach` positions, in blocks of sixteen.
#[inline(always)]
unsafe fn score<S: Isa, const HALF: bool, const N: usize>(
    (keys, values): (*const u8, *const u8),
    size: usize,
    q: &[*const f32; 4],
    reach: usize,
    out: *mut f32,
) {
    // SAFETY: a chunk holds 256 positions, so sixteen from any multiple of sixteen below `reach`.
    unsafe {
        for block in (0..reach).step_by(2 * LANES) {
            // The processor loses sight of such short streams: bring the next sixteen keys near, and these values.
            let bytes = size * if HALF { 2 } else { 4 };
            for line in (block * bytes..(block + 2 * LANES) * bytes).step_by(64) {
                S::prefetch(keys.wrapping_add(2 * LANES * bytes + line));
                S::prefetch(values.wrapping_add(line));
            }
            let mut sums = [[S::zero(); 2]; N];
            for d in 0..size {
                let a = load::<S, HALF>(keys, block * size + d * LANES);
                let b = load::<S, HALF>(keys, (block + LANES) * size + d * LANES);
                for (sums, q) in sums.iter_mut().zip(q) {
                    let q = S::splat(*q.add(d));
                    sums[0] = S::fma(a, q, sums[0]);
                    sums[1] = S::fma(b, q, sums[1]);
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                S::store(out.add(i * CHUNK + block), sums[0]);
                S::store(out.add(i * CHUNK + block + LANES), sums[1]);
            }
        }
    }
}

/// Scores to weights `e^(score - maximum)`; returns the maximum and the sum. Beyond `length` weights are 0.
#[inline(always)]
unsafe fn softmax<S: Isa>(p: *mut f32, length: usize) -> (f32, f32) {
    // SAFETY: a query has `CHUNK` scores.
    unsafe {
        for i in length..length.next_multiple_of(LANES) {
            *p.add(i) = f32::NEG_INFINITY;
        }
        let mut top = S::splat(f32::NEG_INFINITY);
        for i in (0..length).step_by(LANES) {
            top = S::max(S::load(p.add(i)), top);
        }
        let top = S::largest(top);
        let mut total = S::zero();
        for i in (0..length).step_by(LANES) {
            let e = exp::<S>(S::sub(S::load(p.add(i)), S::splat(top)));
            S::store(p.add(i), e);
            total = S::add(total, e);
        }
        (top, sum::<S>(total))
    }
}

/// `sum over positions of weight * value`, position by position, for one query or two: `p` is `[N][CHUNK]`,
/// `out` is `[N][HEAD_MAX]`. Eight sums at a time are as many as two multiply-adds a cycle keep waiting.
#[inline(always)]
unsafe fn value<S: Isa, const HALF: bool, const N: usize>(values: *const u8, size: usize, length: usize, p: *const f32, out: *mut f32) {
    // SAFETY: the caller's: `length` positions of `size` dimensions, a multiple of 16.
    unsafe {
        let mut d = 0;
        while d < size {
            d += match (size - d) / LANES {
                8.. if N == 1 => value_part::<S, HALF, N, 8>(values, size, length, p, d, out),
                4.. => value_part::<S, HALF, N, 4>(values, size, length, p, d, out),
                _ => value_part::<S, HALF, N, 2>(values, size, length, p, d, out),
            };
        }
    }
}

#[inline(always)]
unsafe fn value_part<S: Isa, const HALF: bool, const N: usize, const V: usize>(
    values: *const u8,
    size: usize,
    length: usize,
    p: *const f32,
    d: usize,
    out: *mut f32,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::zero(); V]; N];
        for t in 0..length {
            let weights: [S::F; N] = std::array::from_fn(|i| S::splat(*p.add(i * CHUNK + t)));
            for (j, at) in (0..V).zip((t * size + d..).step_by(LANES)) {
                let v = load::<S, HALF>(values, at);
                for (sums, weight) in sums.iter_mut().zip(weights) {
                    sums[j] = S::fma(v, weight, sums[j]);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                S::store(out.add(i * HEAD_MAX + d + j * LANES), *sum);
            }
        }
    }
    V * LANES
}
