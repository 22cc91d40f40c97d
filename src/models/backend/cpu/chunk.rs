//! What a few rows of one sequence see of one chunk of the keys and values of one head.

use super::attention::{Job, part_length};
use super::buffer::Buffer;
use super::cache::CHUNK;
use super::isa::{Isa, LANES, exp, sum};

#[inline(always)]
unsafe fn load<S: Isa, const HALF: bool>(p: *const u8, index: usize) -> S::F {
    // SAFETY: the caller's.
    unsafe { if HALF { S::load_f16(p.cast::<u16>().add(index)) } else { S::load(p.cast::<f32>().add(index)) } }
}

/// One part for each query, `[query][part]`; `scores` is `[query][CHUNK]`. Those of queries that see nothing of the chunk
/// are left as they are.
///
/// # Safety
/// The job's slices, `scores` and `parts` reach its queries; the chunk holds every position up to its last
/// row's, which sees something of it.
#[inline(always)]
pub(super) unsafe fn parts<S: Isa>(job: &Job<'_>, chunk: usize, scores: *mut f32, parts: *mut f32) {
    // SAFETY: the caller's.
    unsafe { if job.shape.half { parts_of::<S, true>(job, chunk, scores, parts) } else { parts_of::<S, false>(job, chunk, scores, parts) } }
}

/// Memory that is read soon, fetched during several passes over other memory of the same size, each pass a share of every
/// block: `length` of `of` from `start` on. So reading takes place while something is computed.
#[derive(Clone, Copy)]
struct Ahead {
    from: *const u8,
    /// Bytes of sixteen positions.
    block: usize,
    start: usize,
    length: usize,
    of: usize,
}

impl Ahead {
    /// Pass `pass` of `of`.
    fn pass(from: *const u8, block: usize, pass: usize, of: usize) -> Self {
        Self { from, block, start: pass, length: 1, of }
    }

    fn nothing() -> Self {
        Self { from: std::ptr::null(), block: 0, start: 0, length: 0, of: 1 }
    }

    /// A part of a pass.
    fn part(self, start: usize, length: usize, of: usize) -> Self {
        Self { start: self.start * of + start, length: self.length * length, of: self.of * of, ..self }
    }

    /// This pass's share of the block that begins at `position`.
    #[inline(always)]
    unsafe fn fetch<S: Isa>(self, position: usize) {
        let (lines, at) = (self.block / 64, position / (2 * LANES) * self.block);
        for line in lines * self.start / self.of..lines * (self.start + self.length) / self.of {
            // SAFETY: any address will do.
            unsafe { S::prefetch(self.from.wrapping_add(at + line * 64)) };
        }
    }
}

#[inline(always)]
unsafe fn parts_of<S: Isa, const HALF: bool>(job: &Job<'_>, chunk: usize, scores: *mut f32, parts: *mut f32) {
    let (size, group, count, first) = (job.shape.head_size, job.group, job.queries(), job.first(chunk));
    let (key_offset, value_offset) = job.shape.offsets(job.layer, job.kv_head);
    let block = 2 * LANES * size * job.shape.element_bytes();
    // SAFETY: the caller's; queries and dimensions stay within rows, positions within the chunk.
    unsafe {
        let at = |chunk: &Buffer, offset: usize| chunk.as_ptr().add(offset).cast_const();
        let (keys, values) = (at(&job.chunks[chunk], key_offset), at(&job.chunks[chunk], value_offset));
        let passes = (count - first).div_ceil(4);
        for pass in 0..passes {
            let query = first + 4 * pass;
            let n = (count - query).min(4);
            let mut q = [job.q.as_ptr(); 4];
            for (i, q) in q.iter_mut().enumerate().take(n) {
                *q = job.q.as_ptr().add((query + i) / group * job.q_stride + (query + i) % group * size);
            }
            let (reach, to) = (job.length(query + n - 1, chunk), scores.add(query * CHUNK));
            let ahead = Ahead::pass(values, block, pass, passes);
            match n {
                1 => score::<S, HALF, 1>(keys, size, &q, reach, ahead, to),
                2 => score::<S, HALF, 2>(keys, size, &q, reach, ahead, to),
                3 => score::<S, HALF, 3>(keys, size, &q, reach, ahead, to),
                _ => score::<S, HALF, 4>(keys, size, &q, reach, ahead, to),
            }
        }
        // Up to four heads of one row read the values together.
        let together = group.div_ceil(group.div_ceil(4));
        let next = job.chunks[..job.reach()].get(chunk + 1);
        let (calls, mut pass) = ((count - first) / group * group.div_ceil(together), 0);
        let mut query = first;
        while query < count {
            let n = together.min(group - query % group);
            let (length, p) = (job.length(query, chunk), scores.add(query * CHUNK));
            let part = parts.add(query * part_length(size));
            for i in 0..n {
                let part = part.add(i * part_length(size));
                (*part, *part.add(1)) = softmax::<S>(p.add(i * CHUNK), length);
            }
            let ahead = next.map_or(Ahead::nothing(), |next| Ahead::pass(at(next, key_offset), block, pass, calls));
            let to = part.add(LANES);
            match n {
                1 => value::<S, HALF, 1>(values, size, length, ahead, p, to),
                2 => value::<S, HALF, 2>(values, size, length, ahead, p, to),
                3 => value::<S, HALF, 3>(values, size, length, ahead, p, to),
                _ => value::<S, HALF, 4>(values, size, length, ahead, p, to),
            }
            query += n;
            pass += 1;
        }
    }
}

/// Scores of N queries against the first `reach` positions, in blocks of sixteen.
#[inline(always)]
unsafe fn score<S: Isa, const HALF: bool, const N: usize>(
    keys: *const u8,
    size: usize,
    q: &[*const f32; 4],
    reach: usize,
    ahead: Ahead,
    out: *mut f32,
) {
    // SAFETY: a chunk holds 256 positions, so sixteen from any multiple of sixteen below `reach`.
    unsafe {
        for block in (0..reach).step_by(2 * LANES) {
            ahead.fetch::<S>(block);
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

/// `sum over positions of weight * value`, position by position, for N queries: `p` is `[N][CHUNK]`, `out` is
/// `[N][part]`. Eight sums at a time or a few more are as many as two multiply-adds a cycle keep waiting; values that are loaded for
/// more queries are loaded and widened less often.
#[inline(always)]
unsafe fn value<S: Isa, const HALF: bool, const N: usize>(
    values: *const u8,
    size: usize,
    length: usize,
    ahead: Ahead,
    p: *const f32,
    out: *mut f32,
) {
    // SAFETY: the caller's: `length` positions of `size` dimensions, a multiple of 16.
    unsafe {
        let mut d = 0;
        while d < size {
            let ahead = |vectors| ahead.part(d, vectors * LANES, size);
            d += match (size - d) / LANES {
                8.. if N == 1 => value_part::<S, HALF, N, 8>(values, size, length, ahead(8), p, d, out),
                4.. if N < 4 => value_part::<S, HALF, N, 4>(values, size, length, ahead(4), p, d, out),
                _ => value_part::<S, HALF, N, 2>(values, size, length, ahead(2), p, d, out),
            };
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "inlined into the one above")]
unsafe fn value_part<S: Isa, const HALF: bool, const N: usize, const V: usize>(
    values: *const u8,
    size: usize,
    length: usize,
    ahead: Ahead,
    p: *const f32,
    d: usize,
    out: *mut f32,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::zero(); V]; N];
        for block in (0..length).step_by(2 * LANES) {
            ahead.fetch::<S>(block);
            for t in block..length.min(block + 2 * LANES) {
                let weights: [S::F; N] = std::array::from_fn(|i| S::splat(*p.add(i * CHUNK + t)));
                for (j, at) in (0..V).zip((t * size + d..).step_by(LANES)) {
                    let v = load::<S, HALF>(values, at);
                    for (sums, weight) in sums.iter_mut().zip(weights) {
                        sums[j] = S::fma(v, weight, sums[j]);
                    }
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                S::store(out.add(i * part_length(size) + d + j * LANES), *sum);
            }
        }
    }
    V * LANES
}
