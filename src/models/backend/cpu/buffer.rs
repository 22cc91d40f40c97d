//! Zeroed memory for weights, keys and values, in huge pages where the kernel grants them: a step reads all weights
//! once, and with pages of 4 KiB the processor spends a quarter of that time on address translation.
//!
//! Threads write to disjoint parts of a buffer through raw pointers. These come from the mapping itself (`MmapRaw`), never
//! from a reference, so that no `&[u8]` claims that the bytes don't change.

use memmap2::{MmapOptions, MmapRaw};
use std::sync::Arc;

/// A cache line. Vectors of any instruction set are aligned to it too.
const ALIGNMENT: usize = 64;
/// A huge page of x86-64, and of aarch64 with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes that an arena maps at a time. Pages take memory only once they are written to.
const REGION: usize = 512 << 20;

/// `start..start + bytes` of a mapping, which no other buffer has a byte of.
pub(super) struct Buffer {
    memory: Arc<Memory>,
    start: usize,
    bytes: usize,
}

/// Anonymous pages.
struct Memory {
    map: MmapRaw,
    /// Offset of the first huge page.
    start: usize,
}

impl Memory {
    /// At least `bytes` from `start` on.
    fn new(bytes: usize) -> Self {
        // A sum that wrapped would map less than the caller relies on; more than `isize::MAX` is an error.
        let map = MmapOptions::new().len(bytes.saturating_add(HUGE_PAGE)).map_anon();
        // The process can't go on without memory. A worker ends here, and the front reports this message.
        let map = MmapRaw::from(map.unwrap_or_else(|error| panic!("no memory for {bytes} bytes: {error}")));
        let start = map.as_ptr().align_offset(HUGE_PAGE);
        // Whole huge pages only: the rest of a small buffer would take one. A kernel without huge pages reports an error
        // and keeps small ones.
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_PAGE {
            let _ = map.advise_range(memmap2::Advice::HugePage, start, bytes / HUGE_PAGE * HUGE_PAGE);
        }
        Self { start, map }
    }
}

impl Buffer {
    pub(super) fn zeroed(bytes: usize) -> Self {
        Self { memory: Arc::new(Memory::new(bytes)), start: 0, bytes }
    }

    /// The first byte. Valid for reads and writes of the buffer's bytes while the buffer lives; callers must not race.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the mapping is `HUGE_PAGE` longer than what its buffers take, so this is inside or at its end.
        unsafe { self.memory.map.as_mut_ptr().add(self.memory.start + self.start) }
    }

    /// The bytes, of which nobody may write any while the slice lives.
    fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped and zeroed at first, for as long as `memory` is held. Writers are threads of the pool during an
        // operation, for which the owner of the buffer waits, and `as_mut_slice`, which borrows it.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.bytes) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above; `self` is borrowed exclusively, and no other buffer has these bytes.
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

/// Allocates buffers one after the other, so that small ones share huge pages.
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
    fn buffers_of_an_arena_are_zeroed_aligned_and_disjoint() {
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

    #[test]
    #[should_panic(expected = "no memory for")]
    fn a_size_that_overflows_panics() {
        Buffer::zeroed(usize::MAX - HUGE_PAGE + 2);
    }

    #[test]
    #[should_panic(expected = "no memory for")]
    fn a_size_that_overflows_panics_in_an_arena() {
        Arena::default().zeroed(usize::MAX);
    }

    #[test]
    fn a_clone_has_its_own_bytes() {
        let mut buffer = Buffer::zeroed(3);
        buffer.as_mut_slice().fill(1);
        let copy = buffer.clone();
        buffer.as_mut_slice().fill(2);
        assert_eq!((buffer.as_slice(), copy.as_slice()), (&[2; 3][..], &[1; 3][..]));
    }
}
