//! The keys and values of one head in a KV page: reading, writing and prefetching them. `kv_cache.rs` has the layout of a page.

use super::super::isa::{Isa, LANES};
use super::super::kv_cache::{KvShape, PAGE_TOKENS};

/// Loads eight elements from `index` on.
///
/// # Safety
/// The processor has the instruction set; `p` has `index + 8` elements, f16 if `HALF`, else f32.
#[inline(always)]
pub(super) unsafe fn load<S: Isa, const HALF: bool>(p: *const u8, index: usize) -> S::F32x8 {
    // SAFETY: guaranteed by the caller.
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
/// The region consists of blocks of sixteen positions. A pass prefetches the same part of every block: `length` of `shares` equal
/// shares, from share `start` on.
#[derive(Clone, Copy)]
pub(super) struct PrefetchPlan {
    from: *const u8,
    block_bytes: usize,
    start: usize,
    length: usize,
    shares: usize,
}

impl PrefetchPlan {
    /// A plan for pass `pass` of `passes`, which prefetches one share of each block.
    pub(super) fn pass(from: *const u8, block_bytes: usize, pass: usize, passes: usize) -> Self {
        Self { from, block_bytes, start: pass, length: 1, shares: passes }
    }

    pub(super) fn none() -> Self {
        Self { from: std::ptr::null(), block_bytes: 0, start: 0, length: 0, shares: 1 }
    }

    /// A part of this plan: `length` of `shares` equal shares of it, from share `start` on.
    pub(super) fn part(self, start: usize, length: usize, shares: usize) -> Self {
        Self { start: self.start * shares + start, length: self.length * length, shares: self.shares * shares, ..self }
    }

    /// Prefetches the plan's part of the block that contains `position`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    pub(super) unsafe fn fetch<S: Isa>(self, position: usize) {
        let (lines, at) = (self.block_bytes / 64, position / (2 * LANES) * self.block_bytes);
        for line in lines * self.start / self.shares..lines * (self.start + self.length) / self.shares {
            // SAFETY: a prefetch accepts any address.
            unsafe { S::prefetch(self.from.wrapping_add(at + line * 64)) };
        }
    }
}
