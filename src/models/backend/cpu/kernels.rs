//! The kernels of one instruction set, as a table of functions.
//!
//! Every entry is a generic kernel compiled inside a function that enables the instruction set, so that its
//! intrinsics inline. Which table runs is decided once, when the backend is made.

use super::attention::{self, Job, Scratch};
use super::cache::Shape;
use super::forms::{Bf16, Bytes, F16, F32, Fives, Grouping, Kind, Nibbles, Packing, Plain, Sixes, with_form};
use super::headers::{Factors, Pair, Scale, SignedFactors};
use super::isa::{self, Isa};
use super::matmul;
use super::pack::Packed;
use super::quants::{self, Quants, QuantsOut};
use super::rows;
use crate::models::weights::FloatType;
use crate::models::{Error, Result};

/// Safety of every entry: the processor has the instruction set, and what the generic kernel asks for.
pub(super) struct Kernels {
    pub(super) name: &'static str,
    /// One row of a weight as floats.
    pub(super) row: unsafe fn(&Packed, usize, &mut [f32]),
    /// One slab times all rows into `[row][8]`.
    pub(super) slab_int8: unsafe fn(&Packed, usize, &Quants, *mut f32),
    pub(super) slab_f32: unsafe fn(&Packed, usize, &[f32], usize, *mut f32),
    pub(super) quantize: unsafe fn(&[f32], usize, Grouping, QuantsOut),
    pub(super) norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub(super) gate_silu: unsafe fn(&mut [f32], &[f32]),
    pub(super) add: unsafe fn(&mut [f32], &[f32]),
    pub(super) rotate: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    #[allow(clippy::type_complexity, reason = "a kernel's arguments, named where it is defined")]
    pub(super) append: unsafe fn(*mut u8, Shape, usize, usize, usize, &[f32], &[f32]),
    pub(super) attend: unsafe fn(&Job<'_>, &mut Scratch, *mut f32, usize),
    pub(super) attend_chunk: unsafe fn(&Job<'_>, usize, &mut Scratch, &mut [f32]),
    pub(super) merge: unsafe fn(&[f32], &mut [f32]),
}

/// Names a table of kernels to use in place of the fastest one.
const ISA: &str = "SOUFFLEUR_ISA";

impl Kernels {
    /// The fastest table this processor can run, or the one that the environment names.
    pub(super) fn choose() -> Result<&'static Self> {
        let all = Self::all();
        let Some(wanted) = std::env::var_os(ISA) else { return Ok(all[0]) };
        all.iter().find(|kernels| wanted == kernels.name).copied().ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|kernels| kernels.name).collect();
            Error::Unsupported(format!("{ISA}={} is not among the kernels that run here: {}", wanted.display(), names.join(", ")))
        })
    }

    pub(super) fn is_reference(&self) -> bool {
        self.name == scalar::KERNELS.name
    }

    /// Every table this processor can run, the fastest first.
    pub(super) fn all() -> Vec<&'static Self> {
        let mut all: Vec<&'static Self> = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl") {
                all.push(&avx512_vnni::KERNELS);
            }
            if is_x86_feature_detected!("avxvnni") {
                all.push(&avx_vnni::KERNELS);
            }
            all.push(&avx2::KERNELS);
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                if std::arch::is_aarch64_feature_detected!("i8mm") {
                    all.push(&i8mm::KERNELS);
                }
                all.push(&dotprod::KERNELS);
            }
            all.push(&neon::KERNELS);
        }
        all.push(&scalar::KERNELS);
        all
    }
}

#[inline(always)]
unsafe fn slab_int8<S: Isa>(weight: &Packed, slab: usize, x: &Quants, out: *mut f32) {
    let (p, blocks) = (weight.slab(slab), weight.blocks());
    // SAFETY: the slab has `blocks` blocks of the weight's form; `out` is the caller's promise.
    unsafe { with_form!(@quantized weight.kind, Fm => matmul::slab_int8::<S, Fm>(p, blocks, x, out)) }
}

#[inline(always)]
unsafe fn slab_f32<S: Isa>(weight: &Packed, slab: usize, x: &[f32], rows: usize, out: *mut f32) {
    let (p, blocks) = (weight.slab(slab), weight.blocks());
    // SAFETY: as above.
    unsafe { with_form!(weight.kind, Fm => matmul::slab_f32::<S, Fm>(p, blocks, x, rows, out)) }
}

macro_rules! table {
    ($module:ident, $isa:ty, $name:literal $(, $feature:meta)?) => {
        mod $module {
            use super::*;

            pub(super) const KERNELS: Kernels =
                Kernels { name: $name, row, slab_int8, slab_f32, quantize, norm, gate_silu, add, rotate, append, attend, attend_chunk, merge };

            table!(@fn $($feature)?, row(weight: &Packed, row: usize, out: &mut [f32]) = Packed::row::<$isa>);
            table!(@fn $($feature)?, slab_int8(weight: &Packed, slab: usize, x: &Quants, out: *mut f32) = super::slab_int8::<$isa>);
            table!(@fn $($feature)?, slab_f32(weight: &Packed, slab: usize, x: &[f32], rows: usize, out: *mut f32) = super::slab_f32::<$isa>);
            table!(@fn $($feature)?, quantize(x: &[f32], row: usize, grouping: Grouping, out: QuantsOut) = quants::quantize::<$isa>);
            table!(@fn $($feature)?, norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = rows::norm::<$isa>);
            table!(@fn $($feature)?, gate_silu(gate: &mut [f32], up: &[f32]) = rows::gate_silu::<$isa>);
            table!(@fn $($feature)?, add(x: &mut [f32], y: &[f32]) = rows::add::<$isa>);
            table!(@fn $($feature)?, rotate(head: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) = rows::rotate::<$isa>);
            table!(@fn $($feature)?, append(chunk: *mut u8, shape: Shape, layer: usize, head: usize, position: usize, key: &[f32], value: &[f32])
                = attention::append::<$isa>);
            table!(@fn $($feature)?, attend(job: &Job<'_>, scratch: &mut Scratch, out: *mut f32, stride: usize) = attention::attend::<$isa>);
            table!(@fn $($feature)?, attend_chunk(job: &Job<'_>, chunk: usize, scratch: &mut Scratch, parts: &mut [f32])
                = attention::attend_chunk::<$isa>);
            table!(@fn $($feature)?, merge(parts: &[f32], out: &mut [f32]) = attention::merge::<$isa>);
        }
    };
    // What differs from another table is its products of integers.
    ($module:ident, $isa:ty, $name:literal, $feature:meta, ..$rest:expr) => {
        mod $module {
            use super::*;

            pub(super) const KERNELS: Kernels = Kernels { name: $name, slab_int8, ..$rest };
            table!(@fn $feature, slab_int8(weight: &Packed, slab: usize, x: &Quants, out: *mut f32) = super::slab_int8::<$isa>);
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

table!(scalar, isa::Scalar, "scalar");
#[cfg(target_arch = "x86_64")]
table!(avx2, isa::Avx2<{ isa::MADDUBS }>, "avx2", target_feature(enable = "avx2,fma,f16c"));
#[cfg(target_arch = "x86_64")]
table!(avx_vnni, isa::Avx2<{ isa::AVX_VNNI }>, "avxvnni", target_feature(enable = "avx2,fma,f16c,avxvnni"), ..avx2::KERNELS);
#[cfg(target_arch = "x86_64")]
table!(
    avx512_vnni,
    isa::Avx2<{ isa::AVX512_VNNI }>,
    "avx512vnni",
    target_feature(enable = "avx2,fma,f16c,avx512vnni,avx512vl"),
    ..avx2::KERNELS
);
#[cfg(target_arch = "aarch64")]
table!(neon, isa::Neon<{ isa::NEON }>, "neon");
#[cfg(target_arch = "aarch64")]
table!(dotprod, isa::Neon<{ isa::DOTPROD }>, "dotprod", target_feature(enable = "dotprod"), ..neon::KERNELS);
#[cfg(target_arch = "aarch64")]
table!(i8mm, isa::Neon<{ isa::I8MM }>, "i8mm", target_feature(enable = "dotprod,i8mm"), ..neon::KERNELS);
