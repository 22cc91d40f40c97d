//! Weights times the rows of a step, by all threads.

use super::buffer::Arena;
use super::forms::Grouping;
use super::isa::LANES;
use super::pack::Packed;
use super::pool::Pool;
use super::quants::Quants;
use super::tensor::{Shared, Tensor};
use super::{Cpu, Scratch, each_row};
use crate::models::backend::LinearPart;
use crate::models::{Activations, Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of weights in one piece of a product: at least a few microseconds of reading, at most what one row multiplies before
/// who waits for it would begin to compute it again.
const PIECE_LEAST: usize = 32 << 10;
const PIECE_MOST: usize = 256 << 10;
/// Pieces of one weight in between: enough to share evenly.
const PIECES: usize = 64;
/// Rows up to which a piece is made pure, which costs a copy of its results. With more rows an operation takes long beside
/// what a late thread costs.
pub(super) const ROWS_PURE: usize = 16;

/// Slabs of one of the weights.
struct Piece {
    weight: usize,
    slabs: Range<usize>,
}

/// What a product reads.
struct Product {
    weights: Vec<Arc<Packed>>,
    /// For each weight; `None` is the f32 activations themselves.
    quants: Vec<Option<Arc<Quants>>>,
    x: Arc<Vec<f32>>,
    rows: usize,
    pieces: Vec<Piece>,
    kernels: &'static super::Kernels,
}

impl Product {
    /// One slab times all rows into `[row][8]`.
    fn slab(&self, weight: usize, slab: usize, out: &mut [[f32; LANES]]) {
        assert!(out.len() >= self.rows);
        let (packed, out) = (&self.weights[weight], out.as_mut_ptr().cast());
        // SAFETY: made for this processor; `out` has eight floats a row.
        unsafe {
            match &self.quants[weight] {
                Some(quants) => (self.kernels.slab_int8)(packed, slab, quants, out),
                None => (self.kernels.slab_f32)(packed, slab, &self.x, self.rows, out),
            }
        }
    }

    /// A slab's results to its columns of every row.
    ///
    /// # Safety
    /// `to` is the weight's tensor, of which nobody else writes these columns.
    unsafe fn place(&self, weight: usize, slab: usize, from: &[[f32; LANES]], to: Shared) {
        let outputs = self.weights[weight].rows;
        let width = LANES.min(outputs - slab * LANES);
        for (row, from) in from.iter().enumerate().take(self.rows) {
            // SAFETY: the caller's.
            let to = unsafe { to.part(row * outputs + slab * LANES, width) };
            match <&mut [f32; LANES]>::try_from(&mut *to) {
                Ok(to) => *to = *from,
                Err(_) => to.copy_from_slice(&from[..width]),
            }
        }
    }
}

/// One or several packed weights over the same input, with their biases.
pub struct Linear {
    columns: usize,
    weights: Vec<Arc<Packed>>,
    /// For each weight.
    biases: Vec<Option<Vec<f32>>>,
}

impl Linear {
    /// # Errors
    /// `Unsupported` if a weight has no packed layout.
    pub(super) fn new(parts: Vec<LinearPart<'_>>, arena: &mut Arena, pool: &mut Pool<Scratch>) -> Result<Self> {
        let columns = parts.first().map_or(0, |part| part.weight.shape().1);
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for LinearPart { weight, bias } in parts {
            let shape = weight.shape();
            assert_eq!(shape.1, columns, "all parts have the same inputs");
            if let Some(bias) = &bias {
                assert_eq!(bias.len(), shape.0, "a bias has one value per output");
                if !shape.0.is_multiple_of(LANES) {
                    return Err(Error::Unsupported(format!("a bias of {} values; supported are multiples of {LANES}", shape.0)));
                }
            }
            weights.push(Arc::new(Packed::new(&weight, arena, pool)?));
            biases.push(bias);
        }
        Ok(Self { columns, weights, biases })
    }

    /// The weight of a projection that has only one, such as an embedding table.
    pub(super) fn single(&self) -> &Packed {
        assert_eq!(self.weights.len(), 1, "this projection has several weights");
        &self.weights[0]
    }

    /// The same weights several times, to measure the kernels without the quantization of their input.
    pub fn repeated(&self, times: usize) -> Self {
        let repeat = |_| (self.weights.iter().cloned(), self.biases.iter().cloned());
        let (weights, biases): (Vec<_>, Vec<_>) = (0..times).map(repeat).unzip();
        Self { columns: self.columns, weights: weights.into_iter().flatten().collect(), biases: biases.into_iter().flatten().collect() }
    }
}

impl Cpu {
    pub(super) fn products(&mut self, x: &Tensor, by: &Linear) -> Vec<Tensor> {
        assert_eq!(x.width, by.columns, "the input is as wide as the weights have columns");
        let Linear { weights: by, biases, .. } = by;
        let mut ys: Vec<Tensor> = by.iter().map(|weight| Tensor::new(x.rows, weight.rows)).collect();
        if x.rows == 0 {
            return ys;
        }
        // One quantization for each grouping among the weights: nearly always one in all.
        let activations = self.activations;
        let int8 = |weight: &Packed| weight.kind.grouping().filter(|_| activations == Activations::Int8);
        let mut groups: Vec<Grouping> = by.iter().filter_map(|weight| int8(weight)).collect();
        groups.sort_unstable();
        groups.dedup();
        let quants: Vec<(Grouping, Arc<Quants>)> = groups.into_iter().map(|group| (group, self.quantize(x, group))).collect();
        let of = |weight: &Arc<Packed>| quants.iter().find(|(group, _)| int8(weight) == Some(*group)).map(|(_, quants)| quants.clone());
        let product = Arc::new(Product {
            weights: by.clone(),
            quants: by.iter().map(of).collect(),
            x: x.data.clone(),
            rows: x.rows,
            pieces: pieces(by),
            kernels: self.kernels,
        });
        self.quants.extend(quants.into_iter().map(|(_, quants)| quants));

        let outs: Vec<Shared> = ys.iter_mut().map(Tensor::shared).collect();
        let (rows, count) = (x.rows, product.pieces.len());
        if rows <= ROWS_PURE {
            let computed = product.clone();
            let compute = move |piece: usize, scratch: &mut Scratch| {
                let Piece { weight, slabs } = &computed.pieces[piece];
                scratch.out.resize(slabs.len() * rows * LANES, 0.0);
                let slots = scratch.out.as_chunks_mut::<LANES>().0.chunks_exact_mut(rows);
                slabs.clone().zip(slots).for_each(|(slab, out)| computed.slab(*weight, slab, out));
            };
            self.pool.run_pure(count, Box::new(compute), &|piece, scratch| {
                let Piece { weight, slabs } = &product.pieces[piece];
                for (slab, from) in slabs.clone().zip(scratch.out.as_chunks::<LANES>().0.chunks_exact(rows)) {
                    // SAFETY: these columns are this piece's, which is committed once.
                    unsafe { product.place(*weight, slab, from, outs[*weight]) };
                }
            });
        } else {
            self.pool.run(count, &|piece, scratch| {
                let Piece { weight, slabs } = &product.pieces[piece];
                scratch.out.resize(rows * LANES, 0.0);
                for slab in slabs.clone() {
                    let sums = scratch.out.as_chunks_mut::<LANES>().0;
                    product.slab(*weight, slab, sums);
                    // SAFETY: these columns are this piece's.
                    unsafe { product.place(*weight, slab, sums, outs[*weight]) };
                }
            });
        }
        for (y, bias) in ys.iter_mut().zip(biases) {
            if let Some(bias) = bias {
                self.add_bias(y, bias);
            }
        }
        ys
    }

    fn add_bias(&mut self, y: &mut Tensor, bias: &[f32]) {
        let (kernels, width, out) = (self.kernels, y.width, y.shared());
        each_row(&mut self.pool, y.rows, &|row| {
            // SAFETY: a bias is as long as a row, a multiple of 8 (see `Linear::new`); each row is written once.
            unsafe { (kernels.add)(out.part(row * width, width), bias) }
        });
    }

    fn quantize(&mut self, x: &Tensor, grouping: Grouping) -> Arc<Quants> {
        // One that no late thread still reads.
        let free = self.quants.iter().position(|quants| Arc::strong_count(quants) == 1);
        let mut quants = free.map(|index| self.quants.swap_remove(index)).unwrap_or_default();
        let into = Arc::get_mut(&mut quants).expect("nobody else's");
        into.resize(x.rows, x.width, grouping);
        let out = into.out();
        let kernels = self.kernels;
        each_row(&mut self.pool, x.rows, &|row| {
            // SAFETY: `quants` has room for every row, and each row is written once.
            unsafe { (kernels.quantize)(x.row(row), row, grouping, out) }
        });
        quants
    }
}

/// The pieces of all weights in one row, so that one operation has them all.
fn pieces(by: &[Arc<Packed>]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (index, weight) in by.iter().enumerate() {
        let (all, of) = (weight.slabs(), |bytes: usize| (bytes / weight.slab_bytes()).max(1));
        let slabs = all.div_ceil(PIECES).clamp(of(PIECE_LEAST), of(PIECE_MOST));
        pieces.extend((0..all).step_by(slabs).map(|first| Piece { weight: index, slabs: first..all.min(first + slabs) }));
    }
    pieces
}
