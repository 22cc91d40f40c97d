//! Activations between two operations.

/// Rows of activations, row by row.
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) data: Vec<f32>,
}

impl Tensor {
    pub(super) fn new(rows: usize, width: usize) -> Self {
        Self { rows, width, data: vec![0.0; rows * width] }
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..(row + 1) * self.width]
    }
}

/// A tensor that several threads fill, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub(super) *mut f32);
// SAFETY: used only inside one operation, whose pieces write disjoint parts.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// The range lies in the tensor and nobody else touches it during this operation.
    pub(super) unsafe fn part<'a>(&self, start: usize, length: usize) -> &'a mut [f32] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), length) }
    }
}
