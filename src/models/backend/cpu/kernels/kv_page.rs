//! How the keys and values of one head lie in a KV page: reading, writing and prefetching them.

use super::super::isa::{Isa, LANES};
use super::super::kv_cache::{KvShape, PAGE_TOKENS};

/// Eight elements from `index` on.
///
/// # Safety
/// The processor has the instruction set; `p` has `index + 8` elements, f16 if `HALF`, else f32.
#[inline(always)]
pub(super) unsafe fn load<S: Isa, const HALF: bool>(p: *const u8, index: usize) -> S::F32x8 {
    // SAFETY: the caller's.
    unsafe { if HALF { S::load_f16(p.cast::<u16>().add(index)) } else { S::load(p.cast::<f32>().add(index)) } }
}

/// Writes one position's key and value of one head, `[head_dim]` each.
///
/// # Safety
/// The processor has the instruction set. `page` is a writable page of `shape`, and nothing else accesses this position of it.
/// `layer` and `head` are in the shape; `key` and `value` have `head_dim` floats, a multiple of 8.
#[inline(always)]
pub(super) unsafe fn append<S: Isa>(page: *mut u8, shape: KvShape, layer: usize, head: usize, position: usize, key: &[f32], value: &[f32]) {
    let (keys, values) = shape.offsets(layer, head);
    let (at, head_dim) = (position % PAGE_TOKENS, shape.head_dim);
    // SAFETY: offsets stay within the page.
    unsafe {
        let first = at / LANES * LANES * head_dim + at % LANES;
        if shape.half {
            let k = page.add(keys).cast::<u16>().add(first);
            let v = page.add(values).cast::<u16>().add(at * head_dim);
            let mut lanes = [0u16; LANES];
            for d in (0..head_dim).step_by(LANES) {
                S::store_f16(lanes.as_mut_ptr(), S::load(key.as_ptr().add(d)));
                for (i, lane) in lanes.iter().enumerate() {
                    *k.add((d + i) * LANES) = *lane;
                }
                S::store_f16(v.add(d), S::load(value.as_ptr().add(d)));
            }
        } else {
            let k = page.add(keys).cast::<f32>().add(first);
            for (d, x) in key.iter().enumerate() {
                *k.add(d * LANES) = *x;
            }
            value.as_ptr().copy_to_nonoverlapping(page.add(values).cast::<f32>().add(at * head_dim), head_dim);
        }
    }
}

/// Prefetches one region of memory while a kernel passes several times over another of the same size.
///
/// The region consists of blocks of sixteen positions. Each pass prefetches the same share of every block: `length / of`
/// of it, from `start / of` on.
#[derive(Clone, Copy)]
pub(super) struct PrefetchPlan {
    from: *const u8,
    block_bytes: usize,
    start: usize,
    length: usize,
    of: usize,
}

impl PrefetchPlan {
    /// The share of pass `pass` among `passes`.
    pub(super) fn pass(from: *const u8, block_bytes: usize, pass: usize, passes: usize) -> Self {
        Self { from, block_bytes, start: pass, length: 1, of: passes }
    }

    pub(super) fn none() -> Self {
        Self { from: std::ptr::null(), block_bytes: 0, start: 0, length: 0, of: 1 }
    }

    /// `length / of` of this share, from `start / of` on.
    pub(super) fn part(self, start: usize, length: usize, of: usize) -> Self {
        Self { start: self.start * of + start, length: self.length * length, of: self.of * of, ..self }
    }

    /// Prefetches the share of the block that contains `position`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    pub(super) unsafe fn fetch<S: Isa>(self, position: usize) {
        let (lines, at) = (self.block_bytes / 64, position / (2 * LANES) * self.block_bytes);
        for line in lines * self.start / self.of..lines * (self.start + self.length) / self.of {
            // SAFETY: a prefetch accepts any address.
            unsafe { S::prefetch(self.from.wrapping_add(at + line * 64)) };
        }
    }
}
