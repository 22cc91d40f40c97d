//! Activations between two operations.

use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// Memory of tensors that were dropped, for the next ones: a step needs the same few sizes in every layer, and
    /// fresh memory would be cleared and mapped each time.
    static SPARE: RefCell<Vec<Arc<Vec<f32>>>> = const { RefCell::new(Vec::new()) };
}

/// Tensors that live at one time, and some more.
const SPARE_MAX: usize = 16;

/// Rows of activations, row by row.
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Shared with an operation that reads it, also when that is over but for a late thread.
    pub(super) data: Arc<Vec<f32>>,
}

impl Tensor {
    /// For who writes every element: what is in it is some earlier tensor's.
    pub(super) fn new(rows: usize, width: usize) -> Self {
        let length = rows * width;
        let mut data = SPARE.with_borrow_mut(|spare| {
            let free = (0..spare.len()).filter(|&i| spare[i].capacity() >= length && Arc::strong_count(&spare[i]) == 1);
            free.min_by_key(|&i| spare[i].capacity()).map(|index| spare.swap_remove(index)).unwrap_or_default()
        });
        Arc::make_mut(&mut data).resize(length, 0.0);
        Self { rows, width, data }
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..(row + 1) * self.width]
    }

    /// To be filled by several threads; a copy if a late one still reads.
    pub(super) fn shared(&mut self) -> Shared {
        Shared(Arc::make_mut(&mut self.data).as_mut_ptr())
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // A thread that ends has no use for it.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() == SPARE_MAX {
                let smallest = (0..SPARE_MAX).min_by_key(|&i| spare[i].capacity()).expect("some");
                spare.swap_remove(smallest);
            }
            spare.push(self.data.clone());
        });
    }
}

/// A tensor that several threads fill, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32);
// SAFETY: used only inside one operation, whose pieces write disjoint parts.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `start` lies in the tensor.
    pub(super) unsafe fn pointer(&self, start: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(start) }
    }

    /// # Safety
    /// The range lies in the tensor and nobody else touches it during this operation.
    pub(super) unsafe fn part<'a>(&self, start: usize, length: usize) -> &'a mut [f32] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(start), length) }
    }
}
