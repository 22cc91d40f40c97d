//! Attention of a few rows of one sequence over one key-value head, chunk by chunk.
//!
//! A query's result depends on its own length only: scores and values are summed over absolute positions,
//! chunks (not threads, not tiles) cut the context, and their partial results are merged in chunk order.

use super::buffer::Buffer;
use super::cache::{CHUNK, Shape};
use super::chunk;
use super::isa::{Isa, LANES, exp};
use std::sync::Arc;

/// Rows of one span that share a pass over the keys and values.
pub(super) const ROWS: usize = 4;
/// Query heads that may share a key-value head: the largest group in use is 8 (Llama 3), 16 leaves room.
pub(super) const GROUP_MAX: usize = 16;
const QUERIES: usize = ROWS * GROUP_MAX;
pub(super) const HEAD_MAX: usize = 256;

/// A query's part of one chunk: the largest score, the sum of the weights, and from `LANES` on its values.
pub(super) fn part_length(head_size: usize) -> usize {
    LANES + head_size
}

/// Scratch of one thread.
pub(super) struct Scratch {
    scores: Vec<f32>,
    parts: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { scores: vec![0.0; QUERIES * CHUNK], parts: vec![0.0; QUERIES * part_length(HEAD_MAX)] }
    }
}

/// `rows` consecutive rows of one sequence against one key-value head.
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
}

impl Job<'_> {
    pub(super) fn queries(&self) -> usize {
        self.rows * self.group
    }

    /// Positions of chunk `chunk` that a query sees.
    pub(super) fn length(&self, query: usize, chunk: usize) -> usize {
        (self.position + query / self.group + 1).saturating_sub(chunk * CHUNK).min(CHUNK)
    }

    /// The first query that sees something of chunk `chunk`: rows that end before it come first.
    pub(super) fn first(&self, chunk: usize) -> usize {
        (chunk * CHUNK).saturating_sub(self.position) * self.group
    }

    /// Chunks of which the last row sees something.
    pub(super) fn reach(&self) -> usize {
        (self.position + self.rows).div_ceil(CHUNK)
    }
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

/// All of it: a row's heads lie in `out` side by side, and rows `stride` floats apart.
///
/// # Safety
/// The job's slices and `out` reach its rows; the chunks hold every position up to its last row's.
#[inline(always)]
pub(super) unsafe fn attend<S: Isa>(job: &Job<'_>, scratch: &mut Scratch, out: *mut f32, stride: usize) {
    let (size, length) = (job.shape.head_size, part_length(job.shape.head_size));
    let mut running = [Running::default(); QUERIES];
    // SAFETY: the caller's; a scratch has room for every query's part.
    unsafe {
        let place = |query: usize| out.add(query / job.group * stride + query % job.group * size);
        for index in 0..job.reach() {
            let parts = scratch.parts.as_mut_ptr();
            chunk::parts::<S>(job, index, scratch.scores.as_mut_ptr(), parts);
            for (query, running) in running.iter_mut().enumerate().take(job.queries()).skip(job.first(index)) {
                running.add::<S>(parts.add(query * length), size, place(query));
            }
        }
        for (query, running) in running.iter().enumerate().take(job.queries()) {
            running.finish::<S>(size, place(query));
        }
    }
}

/// One chunk's parts, `[query][part]`; those of queries that see nothing of it are left as they are.
///
/// # Safety
/// As `attend`.
#[inline(always)]
pub(super) unsafe fn attend_chunk<S: Isa>(job: &Job<'_>, chunk: usize, scratch: &mut Scratch, parts: &mut [f32]) {
    assert!(chunk < job.reach());
    assert!(parts.len() >= job.queries() * part_length(job.shape.head_size));
    // SAFETY: the caller's, and above.
    unsafe { chunk::parts::<S>(job, chunk, scratch.scores.as_mut_ptr(), parts.as_mut_ptr()) }
}

/// A query's parts of all its chunks, first to last, to its result.
///
/// # Safety
/// The processor has the instruction set; `out` is a head, whole vectors, and there is a part at least.
#[inline(always)]
pub(super) unsafe fn merge<S: Isa>(parts: &[f32], out: &mut [f32]) {
    let mut running = Running::default();
    // SAFETY: parts are as long as `out` asks for.
    unsafe {
        for part in parts.chunks_exact(part_length(out.len())) {
            running.add::<S>(part.as_ptr(), out.len(), out.as_mut_ptr());
        }
        running.finish::<S>(out.len(), out.as_mut_ptr());
    }
}

/// What the chunks so far came to; the values' sum lies where the result will.
#[derive(Clone, Copy)]
struct Running {
    maximum: f32,
    sum: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self { maximum: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl Running {
    /// What came before is scaled to the new maximum, then the part's values are added.
    #[inline(always)]
    unsafe fn add<S: Isa>(&mut self, part: *const f32, size: usize, out: *mut f32) {
        // SAFETY: the caller's: a part and a result of `size`.
        unsafe {
            let (top, total, values) = (*part, *part.add(1), part.add(LANES));
            // Nothing was added yet: `out` has some earlier tensor's values.
            let fresh = self.maximum == f32::NEG_INFINITY;
            let new = if top > self.maximum { top } else { self.maximum };
            let (before, now) = (exp_one::<S>(self.maximum - new), exp_one::<S>(top - new));
            *self = Self { maximum: new, sum: self.sum * before + total * now };
            for d in (0..size).step_by(LANES) {
                let old = if fresh { S::zero() } else { S::load(out.add(d)) };
                S::store(out.add(d), S::fma(S::load(values.add(d)), S::splat(now), S::mul(old, S::splat(before))));
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Isa>(&self, size: usize, out: *mut f32) {
        // SAFETY: the caller's: a result of `size`.
        unsafe {
            let scale = S::splat(1.0 / self.sum);
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
