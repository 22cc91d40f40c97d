//! Weights times the rows of a step, divided among threads by row panels (eight rows of a weight, see `weights/layout.rs`).

use super::super::buffer::Arena;
use super::super::isa::LANES;
use super::super::kernels::Kernels;
use super::super::kernels::quantize::QuantizedActivations;
use super::super::pool::Pool;
use super::super::tensor::{Tensor, TensorWriter};
use super::super::weights::layout::ActivationQuant;
use super::super::weights::pack::Packed;
use super::super::{Cpu, Scratch, each_row};
use crate::models::backend::LinearPart;
use crate::models::{Activations, Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of weights in one task. The minimum takes a few microseconds to read. The maximum keeps a task of one row shorter than the
/// time after which the pool runs a task a second time, as a backup task.
const TASK_BYTES_MIN: usize = 32 << 10;
const TASK_BYTES_MAX: usize = 256 << 10;
/// Tasks of one weight, within these bounds: enough to balance the load.
const TASKS_PER_WEIGHT: usize = 64;
/// Steps of at most this many rows (decode steps) use idempotent tasks, which costs a copy of their results. A step of more rows
/// takes so long that a straggler (see `pool`) delays it little.
pub(in super::super) const FEW_ROWS_MAX: usize = 16;

/// Row panels of one of the weights.
struct PanelTask {
    weight: usize,
    panels: Range<usize>,
}

/// The input of one projection, shared with the threads.
struct Projection {
    weights: Vec<Arc<Packed>>,
    /// The quantized input of each weight; `None` if the f32 activations are used.
    quantized: Vec<Option<Arc<QuantizedActivations>>>,
    x: Arc<Vec<f32>>,
    rows: usize,
    tasks: Vec<PanelTask>,
    kernels: &'static Kernels,
}

impl Projection {
    /// Multiplies one row panel with all rows, into `[row][8]`.
    fn multiply_panel(&self, weight: usize, panel: usize, out: &mut [[f32; LANES]]) {
        assert!(out.len() >= self.rows);
        let (packed, out) = (&self.weights[weight], out.as_mut_ptr().cast());
        // SAFETY: this CPU has the kernels' instruction set; `project_all` made the activations for this weight; `out` has eight floats
        // per row.
        unsafe {
            match &self.quantized[weight] {
                Some(x) => (self.kernels.panel_int8)(packed, panel, x, out),
                None => (self.kernels.panel_f32)(packed, panel, &self.x, self.rows, out),
            }
        }
    }

    /// Copies a panel's results to its columns of every row.
    ///
    /// # Safety
    /// `to` is the output tensor of the weight, and nothing else accesses these columns of it.
    unsafe fn store_panel(&self, weight: usize, panel: usize, from: &[[f32; LANES]], to: TensorWriter<'_>) {
        let outputs = self.weights[weight].rows;
        let width = LANES.min(outputs - panel * LANES);
        // Checked once: a check in the loop takes a twentieth of the time of a product.
        assert!(from.len() >= self.rows && to.length() >= self.rows * outputs, "the output has a row for each input row");
        let start = to.pointer(0);
        for (row, from) in from.iter().enumerate().take(self.rows) {
            // SAFETY: columns `panel * 8..panel * 8 + width` of a row are inside the tensor, as just checked, and exclusive by
            // the caller's promise.
            unsafe {
                let to = start.add(row * outputs + panel * LANES);
                if width == LANES {
                    to.cast::<[f32; LANES]>().write(*from);
                } else {
                    from.as_ptr().copy_to_nonoverlapping(to, width);
                }
            }
        }
    }
}

/// One or several packed weights over the same input, with their biases.
pub struct Linear {
    columns: usize,
    weights: Vec<Arc<Packed>>,
    /// One for each weight.
    biases: Vec<Option<Vec<f32>>>,
}

impl Linear {
    /// # Errors
    /// `Unsupported` if a weight has no packed layout.
    pub(in super::super) fn new(parts: Vec<LinearPart<'_>>, arena: &mut Arena, pool: &mut Pool<Scratch>) -> Result<Self> {
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
    pub(in super::super) fn single(&self) -> &Packed {
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
    /// `x * weight^T + bias` for each weight: `[rows, outputs]` each.
    pub(in super::super) fn project_all(&mut self, x: &Tensor, linear: &Linear) -> Vec<Tensor> {
        assert_eq!(x.width, linear.columns, "the input has as many columns as the weights");
        let Linear { weights, biases, .. } = linear;
        let mut ys: Vec<Tensor> = weights.iter().map(|weight| self.tensors.alloc(x.rows, weight.rows)).collect();
        if x.rows == 0 {
            return ys;
        }
        // The input is quantized once for each `ActivationQuant` among the weights: nearly always once.
        let activations = self.activations;
        let quant_of = |weight: &Packed| weight.kind.activation_quant().filter(|_| activations == Activations::Int8);
        let mut quants: Vec<ActivationQuant> = weights.iter().filter_map(|weight| quant_of(weight)).collect();
        quants.sort_unstable();
        quants.dedup();
        let quantized: Vec<(ActivationQuant, Arc<QuantizedActivations>)> =
            quants.into_iter().map(|quant| (quant, self.quantize(x, quant))).collect();
        let input_of = |weight: &Arc<Packed>| {
            let quant = quant_of(weight)?;
            quantized.iter().find(|(other, _)| quant == *other).map(|(_, input)| input.clone())
        };
        let projection = Arc::new(Projection {
            weights: weights.clone(),
            quantized: weights.iter().map(input_of).collect(),
            x: x.data.clone(),
            rows: x.rows,
            tasks: panel_tasks(weights),
            kernels: self.kernels,
        });
        self.quantized.extend(quantized.into_iter().map(|(_, input)| input));

        let outs: Vec<TensorWriter<'_>> = ys.iter_mut().map(Tensor::writer).collect();
        let (rows, count) = (x.rows, projection.tasks.len());
        if rows <= FEW_ROWS_MAX {
            let shared = projection.clone();
            let compute = move |task: usize, scratch: &mut Scratch| {
                let PanelTask { weight, panels } = &shared.tasks[task];
                scratch.out.resize(panels.len() * rows * LANES, 0.0);
                let outs = scratch.out.as_chunks_mut::<LANES>().0.chunks_exact_mut(rows);
                panels.clone().zip(outs).for_each(|(panel, out)| shared.multiply_panel(*weight, panel, out));
            };
            self.pool.run_idempotent(count, Box::new(compute), &|task, scratch| {
                let PanelTask { weight, panels } = &projection.tasks[task];
                for (panel, from) in panels.clone().zip(scratch.out.as_chunks::<LANES>().0.chunks_exact(rows)) {
                    // SAFETY: only this task writes these columns, and the pool commits a task once.
                    unsafe { projection.store_panel(*weight, panel, from, outs[*weight]) };
                }
            });
        } else {
            self.pool.run(count, &|task, scratch| {
                let PanelTask { weight, panels } = &projection.tasks[task];
                scratch.out.resize(rows * LANES, 0.0);
                for panel in panels.clone() {
                    let sums = scratch.out.as_chunks_mut::<LANES>().0;
                    projection.multiply_panel(*weight, panel, sums);
                    // SAFETY: only this task writes these columns.
                    unsafe { projection.store_panel(*weight, panel, sums, outs[*weight]) };
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
        assert!(bias.len() == y.width && y.width.is_multiple_of(LANES), "a bias has one value per output");
        let (kernels, rows, width, out) = (self.kernels, y.rows, y.width, y.writer());
        each_row(&mut self.pool, rows, &|row| {
            // SAFETY: the lengths were checked above; each row is written once.
            unsafe { (kernels.add)(out.slice(row * width, width), bias) }
        });
    }

    fn quantize(&mut self, x: &Tensor, quant: ActivationQuant) -> Arc<QuantizedActivations> {
        // A buffer that no straggler still reads (see `tensor.rs`).
        let free = self.quantized.iter().position(|buffer| Arc::strong_count(buffer) == 1);
        let mut quantized = free.map(|index| self.quantized.swap_remove(index)).unwrap_or_default();
        let buffer = Arc::get_mut(&mut quantized).expect("nothing else holds it");
        buffer.resize(x.rows, x.width, quant);
        let (kernels, out) = (self.kernels, buffer.writer());
        each_row(&mut self.pool, x.rows, &|row| {
            // SAFETY: `resize` made room for every row; each row is written once.
            unsafe { (kernels.quantize)(x.row(row), row, quant, out) }
        });
        quantized
    }
}

/// The tasks of all weights, as one list, so that one operation computes them all.
fn panel_tasks(weights: &[Arc<Packed>]) -> Vec<PanelTask> {
    let mut tasks = Vec::new();
    for (index, weight) in weights.iter().enumerate() {
        let (count, panels_in) = (weight.panels(), |bytes: usize| (bytes / weight.panel_bytes()).max(1));
        let panels = count.div_ceil(TASKS_PER_WEIGHT).clamp(panels_in(TASK_BYTES_MIN), panels_in(TASK_BYTES_MAX));
        tasks.extend((0..count).step_by(panels).map(|first| PanelTask { weight: index, panels: first..count.min(first + panels) }));
    }
    tasks
}
