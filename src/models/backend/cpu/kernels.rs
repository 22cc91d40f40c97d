//! The kernels of one instruction set, as a table of functions.
//!
//! Every entry is a generic kernel compiled inside a function that enables the instruction set, so that its
//! intrinsics inline. Which table runs is decided once, when the backend is made.

use super::attention::{self, Job, Scratch};
use super::cache::Shape;
use super::forms::{
    Bf16, Bytes, F16, F32, Factors, Fives, Kind, Nibbles, Packing, Pair, Plain, Scale, SignedFactors, Sixes, with_form,
};
use super::isa::Isa;
use super::matmul::{self, Quants, QuantsOut};
use super::pack::Packed;
use super::rows;
use crate::models::weights::Element;

/// What multiplies a weight: rows of f32, or of eight-bit integers made from them.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    F32 { x: &'a [f32], rows: usize },
    Int8(&'a Quants),
}

/// Safety of every entry: the processor has the instruction set, and what the generic kernel asks for.
pub(super) struct Kernels {
    pub(super) name: &'static str,
    /// One slab times all rows into `[row][8]`.
    pub(super) slab: unsafe fn(&Packed, usize, Input<'_>, *mut f32),
    pub(super) quantize: unsafe fn(&[f32], usize, usize, QuantsOut),
    pub(super) norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub(super) gate_silu: unsafe fn(&mut [f32], &[f32]),
    pub(super) add: unsafe fn(&mut [f32], &[f32]),
    pub(super) rotate: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    #[allow(clippy::type_complexity, reason = "a kernel's arguments, named where it is defined")]
    pub(super) append: unsafe fn(*mut u8, Shape, usize, usize, usize, &[f32], &[f32]),
    pub(super) attend: unsafe fn(&Job<'_>, &mut Scratch),
}

impl Kernels {
    /// The fastest table this processor can run.
    pub(super) fn detect() -> &'static Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return &avx2::KERNELS;
        }
        &scalar::KERNELS
    }

    pub(super) fn is_reference(&self) -> bool {
        self.name == scalar::KERNELS.name
    }

    /// Every table this processor can run.
    #[cfg(test)]
    pub(super) fn all() -> Vec<&'static Self> {
        let best = Self::detect();
        if best.is_reference() { vec![best] } else { vec![&scalar::KERNELS, best] }
    }
}

#[inline(always)]
unsafe fn slab<S: Isa>(weight: &Packed, slab: usize, input: Input<'_>, out: *mut f32) {
    let (p, blocks) = (weight.slab(slab), weight.blocks());
    // SAFETY: the slab has `blocks` blocks of the weight's form; `out` is the caller's promise.
    unsafe {
        match input {
            Input::F32 { x, rows } => with_form!(weight.kind, Fm => matmul::slab_f32::<S, Fm>(p, blocks, x, rows, out)),
            Input::Int8(x) => with_form!(@quantized weight.kind, Fm => matmul::slab_int8::<S, Fm>(p, blocks, x, out)),
        }
    }
}

macro_rules! table {
    ($module:ident, $isa:ty, $name:literal $(, $feature:meta)?) => {
        mod $module {
            use super::*;

            pub(super) const KERNELS: Kernels =
                Kernels { name: $name, slab, quantize, norm, gate_silu, add, rotate, append, attend };

            table!(@fn $($feature)?, slab(weight: &Packed, slab: usize, input: Input<'_>, out: *mut f32) = super::slab::<$isa>);
            table!(@fn $($feature)?, quantize(x: &[f32], row: usize, group: usize, out: QuantsOut) = matmul::quantize::<$isa>);
            table!(@fn $($feature)?, norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = rows::norm::<$isa>);
            table!(@fn $($feature)?, gate_silu(gate: &mut [f32], up: &[f32]) = rows::gate_silu::<$isa>);
            table!(@fn $($feature)?, add(x: &mut [f32], y: &[f32]) = rows::add::<$isa>);
            table!(@fn $($feature)?, rotate(head: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) = rows::rotate::<$isa>);
            table!(@fn $($feature)?, append(chunk: *mut u8, shape: Shape, layer: usize, head: usize, position: usize, key: &[f32], value: &[f32])
                = attention::append::<$isa>);
            table!(@fn $($feature)?, attend(job: &Job<'_>, scratch: &mut Scratch) = attention::attend::<$isa>);
        }
    };
    (@fn $($feature:meta)?, $name:ident($($argument:ident: $type:ty),*) = $kernel:expr) => {
        $(#[$feature])?
        unsafe fn $name($($argument: $type),*) {
            // SAFETY: the table's contract.
            unsafe { $kernel($($argument),*) }
        }
    };
}

table!(scalar, crate::models::backend::cpu::isa::Scalar, "scalar");
#[cfg(target_arch = "x86_64")]
table!(avx2, crate::models::backend::cpu::isa::Avx2, "avx2", target_feature(enable = "avx2,fma,f16c"));
