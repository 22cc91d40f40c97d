//! Zeroed memory for weights, keys and values, in huge pages where the operating system has them. A decode step reads all weights
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
/// Bytes that an arena maps at a time, at least. Pages take physical memory when they are first written to.
const REGION_BYTES_MIN: usize = 512 << 20;

/// Bytes of a mapping that belong to this buffer alone.
pub(super) struct Buffer {
    mapping: Arc<Mapping>,
    /// From the first huge page of the mapping.
    offset: usize,
    bytes: usize,
}

/// A mapping of anonymous pages, long enough that huge pages can be used from `first_huge_page` on.
struct Mapping {
    map: MmapRaw,
    /// Offset of the first address that is aligned to `HUGE_PAGE`.
    first_huge_page: usize,
}

impl Mapping {
    /// Maps at least `bytes` from `first_huge_page` on.
    fn new(bytes: usize) -> Self {
        // Saturates, because a wrapped sum would map less than the caller relies on. More than `isize::MAX` is an error.
        let map = MmapOptions::new().len(bytes.saturating_add(HUGE_PAGE)).map_anon();
        // The process cannot continue without memory. A worker process exits, and its parent process reports this message.
        let map = MmapRaw::from(map.unwrap_or_else(|error| panic!("no memory for {bytes} bytes: {error}")));
        let first_huge_page = map.as_ptr().align_offset(HUGE_PAGE);
        // Only whole huge pages are requested, because a small rest would occupy a whole huge page too. A kernel without huge pages
        // returns an error, and the mapping keeps normal pages.
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_PAGE {
            let _ = map.advise_range(memmap2::Advice::HugePage, first_huge_page, bytes / HUGE_PAGE * HUGE_PAGE);
        }
        Self { first_huge_page, map }
    }
}

impl Buffer {
    pub(super) fn zeroed(bytes: usize) -> Self {
        Self { mapping: Arc::new(Mapping::new(bytes)), offset: 0, bytes }
    }

    /// The first byte. Valid for reads and writes of the buffer's bytes while the buffer lives; callers must not race.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the mapping is `HUGE_PAGE` longer than what its buffers take, so this is inside or at its end.
        unsafe { self.mapping.map.as_mut_ptr().add(self.mapping.first_huge_page + self.offset) }
    }

    /// The bytes. Nothing may write to them while the slice lives.
    fn as_slice(&self) -> &[u8] {
        // SAFETY: the bytes are mapped, and zeroed at first, while `mapping` is held. The pool's threads write to them only during an
        // operation, and the owner of the buffer waits for it. `as_mut_slice` borrows the buffer exclusively.
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
    mapping: Option<Arc<Mapping>>,
    used: usize,
    size: usize,
}

impl Arena {
    pub(super) fn allocate_zeroed(&mut self, bytes: usize) -> Buffer {
        let mapping = match &self.mapping {
            Some(mapping) if bytes <= self.size - self.used => mapping,
            _ => {
                (self.used, self.size) = (0, bytes.max(REGION_BYTES_MIN));
                self.mapping.insert(Arc::new(Mapping::new(self.size)))
            }
        };
        let buffer = Buffer { mapping: mapping.clone(), offset: self.used, bytes };
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
        let mut buffers: Vec<Buffer> =
            [1, 64, 100, REGION_BYTES_MIN, 7, REGION_BYTES_MIN + 5, 3].map(|bytes| arena.allocate_zeroed(bytes)).into();
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
        Arena::default().allocate_zeroed(usize::MAX);
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
