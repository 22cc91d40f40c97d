//! Zeroed memory for weights, keys and values, in huge pages where the kernel grants them: a step reads all weights
//! once, and with pages of 4 KiB the processor spends a quarter of that time looking up addresses.

use memmap2::{MmapMut, MmapOptions};
use std::sync::Arc;

/// A cache line; vectors of any instruction set are aligned to it too.
const ALIGNMENT: usize = 64;
/// A huge page of x86-64, and of aarch64 with pages of 4 KiB.
const HUGE: usize = 2 << 20;
/// What an arena asks the system for at a time. It costs addresses only until it is written to.
const REGION: usize = 512 << 20;

pub(super) struct Buffer {
    memory: Arc<Memory>,
    start: usize,
    bytes: usize,
}

/// Pages from the system.
struct Memory {
    map: MmapMut,
    /// The first huge page begins here.
    start: usize,
}

impl Memory {
    fn new(bytes: usize) -> Self {
        // A process that gets no memory can't go on; the worker ends, and its front says why.
        let map = MmapOptions::new().len(bytes + HUGE).map_anon().unwrap_or_else(|error| panic!("no memory for {bytes} bytes: {error}"));
        let start = map.as_ptr().align_offset(HUGE);
        // Whole ones only, or a small buffer would take a large page. A kernel without them says so, and gives small ones.
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            let _ = map.advise_range(memmap2::Advice::HugePage, start, bytes / HUGE * HUGE);
        }
        Self { start, map }
    }
}

impl Buffer {
    pub(super) fn zeroed(bytes: usize) -> Self {
        Self { memory: Arc::new(Memory::new(bytes)), start: 0, bytes }
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.memory.map.as_ptr().wrapping_add(self.memory.start + self.start).cast_mut()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped zeroed, for as long as `memory` is held, and no two buffers share a byte.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.bytes) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.bytes) }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.bytes);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

/// Buffers that are kept together, one behind the other, so that small ones share huge pages.
#[derive(Default)]
pub(super) struct Arena {
    memory: Option<Arc<Memory>>,
    used: usize,
    size: usize,
}

impl Arena {
    pub(super) fn zeroed(&mut self, bytes: usize) -> Buffer {
        let memory = match &self.memory {
            Some(memory) if bytes <= self.size - self.used => memory,
            _ => {
                (self.used, self.size) = (0, bytes.max(REGION));
                self.memory.insert(Arc::new(Memory::new(self.size)))
            }
        };
        let buffer = Buffer { memory: memory.clone(), start: self.used, bytes };
        self.used = (self.used + bytes).next_multiple_of(ALIGNMENT).min(self.size);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_arena_are_zero_aligned_and_apart() {
        let mut arena = Arena::default();
        let mut buffers: Vec<Buffer> = [1, 64, 100, REGION, 7, REGION + 5, 3].map(|bytes| arena.zeroed(bytes)).into();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.as_ptr().is_aligned() && buffer.as_slice().iter().all(|&byte| byte == 0));
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0);
            buffer.as_mut_slice().fill(index as u8 + 1);
        }
        for (index, buffer) in buffers.iter().enumerate() {
            assert!(buffer.as_slice().iter().all(|&byte| byte == index as u8 + 1), "buffer {index}");
        }
    }
}
