//! Activations that pass from one operation to the next.
//!
//! A straggler is a thread that is late with a task; it may still run it after a backup has finished (see `pool`), so it may read
//! the input of an operation that has returned.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most buffers kept for reuse. It exceeds the number of tensors that are live at one time in a step.
const FREE_BUFFERS_MAX: usize = 16;

/// A matrix of f32 activations, `[rows, width]`, row-major.
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Shared with the operations that read it, and their stragglers.
    pub(super) data: Arc<Vec<f32>>,
    free_list: FreeList,
}

impl Tensor {
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..(row + 1) * self.width]
    }

    /// Write access for several threads at a time. Copies the data if a straggler still reads it.
    pub(super) fn writer(&mut self) -> TensorWriter<'_> {
        let data = Arc::make_mut(&mut self.data);
        TensorWriter { base: data.as_mut_ptr(), length: data.len(), borrow: PhantomData }
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let mut free = self.free_list.lock();
        if free.len() == FREE_BUFFERS_MAX {
            let smallest = (0..FREE_BUFFERS_MAX).min_by_key(|&i| free[i].capacity()).expect("FREE_BUFFERS_MAX is not zero");
            free.swap_remove(smallest);
        }
        free.push(self.data.clone());
    }
}

/// Allocates tensors from the memory of dropped ones. Every layer needs the same few sizes, and new memory would be mapped and
/// cleared each time.
#[derive(Default)]
pub(super) struct TensorAllocator {
    free_list: FreeList,
}

impl TensorAllocator {
    /// The elements are unspecified values, not zeros: the caller must write an element before reading it.
    pub(super) fn alloc(&self, rows: usize, width: usize) -> Tensor {
        let length = rows.checked_mul(width).expect("a tensor's size fits in usize");
        let mut data = self.free_list.take(length).unwrap_or_default();
        Arc::make_mut(&mut data).resize(length, 0.0);
        Tensor { rows, width, data, free_list: self.free_list.clone() }
    }
}

#[derive(Clone, Default)]
struct FreeList(Arc<Mutex<Vec<Arc<Vec<f32>>>>>);

impl FreeList {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Vec<f32>>>> {
        // A panic cannot leave the list half-changed, so poisoning is ignored.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The smallest buffer with room for `length` elements that no straggler still reads.
    fn take(&self, length: usize) -> Option<Arc<Vec<f32>>> {
        let mut free = self.lock();
        let fits = (0..free.len()).filter(|&i| free[i].capacity() >= length && Arc::strong_count(&free[i]) == 1);
        fits.min_by_key(|&i| free[i].capacity()).map(|index| free.swap_remove(index))
    }
}

/// A tensor that several threads write to, each to its own part.
#[derive(Clone, Copy)]
pub(super) struct TensorWriter<'t> {
    base: *mut f32,
    length: usize,
    borrow: PhantomData<&'t mut [f32]>,
}

// SAFETY: memory is reached through `slice`, whose caller promises that the parts of different threads are disjoint, or through
// the raw pointer of `pointer`, whose dereference is unsafe.
unsafe impl Send for TensorWriter<'_> {}
// SAFETY: as above.
unsafe impl Sync for TensorWriter<'_> {}

impl<'t> TensorWriter<'t> {
    /// Number of elements.
    pub(super) fn length(self) -> usize {
        self.length
    }

    /// A pointer to element `index`. The length as `index` gives the end of the tensor, which must not be dereferenced. The contract
    /// of `slice` applies to reads and writes through the pointer.
    pub(super) fn pointer(self, index: usize) -> *mut f32 {
        assert!(index <= self.length, "element {index} of a tensor of {}", self.length);
        // SAFETY: within the allocation or at its end, as just checked.
        unsafe { self.base.add(index) }
    }

    /// Elements `start..start + length`.
    ///
    /// # Safety
    /// While the slice lives, nothing else accesses these elements.
    pub(super) unsafe fn slice(self, start: usize, length: usize) -> &'t mut [f32] {
        assert!(start <= self.length && length <= self.length - start, "{length} elements from {start} of a tensor of {}", self.length);
        // SAFETY: the range is within the tensor, as just checked. The tensor is initialized and borrowed mutably for 't. The caller
        // promises exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_slice_outside_the_tensor_panics() {
        let mut tensor = TensorAllocator::default().alloc(2, 3);
        let writer = tensor.writer();
        // SAFETY: one slice at a time.
        let slice = |start, length| catch_unwind(AssertUnwindSafe(|| unsafe { writer.slice(start, length) }.fill(1.0)));
        assert!(slice(0, 6).is_ok() && slice(6, 0).is_ok());
        for (start, length) in [(0, 7), (7, 0), (5, 2), (6, usize::MAX), (usize::MAX, 1)] {
            assert!(slice(start, length).is_err(), "{length} from {start}");
        }
        assert!(catch_unwind(|| writer.pointer(7)).is_err());
    }

    #[test]
    #[should_panic(expected = "fits in usize")]
    fn a_size_that_overflows_panics() {
        TensorAllocator::default().alloc(1 << (usize::BITS - 1), 2);
    }

    #[test]
    fn memory_is_reused_when_no_straggler_reads_it_any_more() {
        let tensors = TensorAllocator::default();
        let tensor = tensors.alloc(4, 8);
        let (straggler, address) = (tensor.data.clone(), tensor.data.as_ptr());
        drop(tensor);
        assert_ne!(tensors.alloc(4, 8).data.as_ptr(), address);
        drop(straggler);
        assert!([tensors.alloc(2, 8), tensors.alloc(4, 8)].iter().any(|tensor| tensor.data.as_ptr() == address));
    }

    #[test]
    fn writing_copies_data_that_a_straggler_still_reads() {
        let mut tensor = TensorAllocator::default().alloc(1, 1);
        let straggler = tensor.data.clone();
        // SAFETY: the only slice.
        unsafe { tensor.writer().slice(0, 1).fill(5.0) };
        assert_eq!((straggler[0], tensor.row(0)[0]), (0.0, 5.0));
    }
}
