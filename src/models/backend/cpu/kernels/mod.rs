//! The kernels of one instruction set, as a table of functions.
//!
//! Every entry is a generic kernel compiled inside a function that enables the instruction set, so that its intrinsics are
//! inlined. The backend chooses its table when it is opened. A row panel is eight rows of a weight (see `weights/layout.rs`).

pub(super) mod attention;
mod elementwise;
mod kv_page;
mod matmul;
mod page_attention;
pub(super) mod quantize;

use super::isa::{self, Isa};
use super::kv_cache::KvShape;
use super::weights::ints::{I8, U4, U5, U6};
use super::weights::layout::{ActivationQuant, Bf16, BlockLayout, F16, F32, FloatLayout, LayoutKind, with_layout};
use super::weights::pack::Packed;
use super::weights::scales::{KQuantScale, KQuantScaleMin, ScaleBias, ScaleOnly};
use crate::models::weights::FloatType;
use crate::models::{Error, Result};
use attention::{AttentionScratch, QueryTile};
use quantize::{ActivationWriter, QuantizedActivations};

/// # Safety
/// Of every entry: the processor has the instruction set, and the contract of the generic kernel holds.
pub(super) struct Kernels {
    pub(super) name: &'static str,
    /// `Packed::row`: one row of a weight as floats.
    pub(super) row: unsafe fn(&Packed, usize, &mut [f32]),
    /// One row panel times all rows of quantized activations, into `[row][8]`.
    pub(super) panel_int8: unsafe fn(&Packed, usize, &QuantizedActivations, *mut f32),
    /// One row panel times all rows of f32 activations, into `[row][8]`.
    pub(super) panel_f32: unsafe fn(&Packed, usize, &[f32], usize, *mut f32),
    /// `quantize::quantize`.
    pub(super) quantize: unsafe fn(&[f32], usize, ActivationQuant, ActivationWriter),
    /// `elementwise::norm`.
    pub(super) norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    /// `elementwise::gate_silu`.
    pub(super) gate_silu: unsafe fn(&mut [f32], &[f32]),
    /// `elementwise::add`.
    pub(super) add: unsafe fn(&mut [f32], &[f32]),
    /// `elementwise::rotate`.
    pub(super) rotate: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    /// `kv_page::append`.
    #[allow(clippy::type_complexity, reason = "a kernel's arguments, named where it is defined")]
    pub(super) append: unsafe fn(*mut u8, KvShape, usize, usize, usize, &[f32], &[f32]),
    /// `attention::attend`.
    pub(super) attend: unsafe fn(&QueryTile<'_>, &mut AttentionScratch, *mut f32, usize),
    /// `attention::attend_page`.
    pub(super) attend_page: unsafe fn(&QueryTile<'_>, usize, &mut AttentionScratch, &mut [f32]),
    /// `attention::combine`.
    pub(super) combine: unsafe fn(&[f32], &mut [f32]),
}

/// The environment variable with the name of the kernels to use instead of the fastest ones.
const ISA: &str = "SOUFFLEUR_ISA";

impl Kernels {
    /// The fastest table that this processor can run, or the one that the environment names.
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

    /// Every table that this processor can run, the fastest first.
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

/// # Safety
/// The processor has the instruction set. `x` has the weight's columns and was quantized for its layout. `out` has eight floats
/// per row of `x`.
#[inline(always)]
unsafe fn panel_int8<S: Isa>(weight: &Packed, panel: usize, x: &QuantizedActivations, out: *mut f32) {
    let (p, blocks) = (weight.panel(panel), weight.blocks());
    // SAFETY: the panel has `blocks` blocks of the weight's layout; the rest is guaranteed by the caller.
    unsafe { with_layout!(@quantized weight.kind, L => matmul::panel_int8::<S, L>(p, blocks, x, out)) }
}

/// # Safety
/// The processor has the instruction set. `x` is `[rows, columns]`, with the weight's columns. `out` has eight floats per row.
#[inline(always)]
unsafe fn panel_f32<S: Isa>(weight: &Packed, panel: usize, x: &[f32], rows: usize, out: *mut f32) {
    let (p, blocks) = (weight.panel(panel), weight.blocks());
    // SAFETY: the panel has `blocks` blocks of the weight's layout; the rest is guaranteed by the caller.
    unsafe { with_layout!(weight.kind, L => matmul::panel_f32::<S, L>(p, blocks, x, rows, out)) }
}

macro_rules! table {
    ($module:ident, $isa:ty, $name:literal $(, $feature:meta)?) => {
        mod $module {
            use super::*;

            pub(super) const KERNELS: Kernels = Kernels {
                name: $name, row, panel_int8, panel_f32, quantize, norm, gate_silu, add, rotate, append, attend, attend_page, combine,
            };

            table!(@fn $($feature)?, row(weight: &Packed, row: usize, out: &mut [f32]) = Packed::row::<$isa>);
            table!(@fn $($feature)?, panel_int8(weight: &Packed, panel: usize, x: &QuantizedActivations, out: *mut f32)
                = super::panel_int8::<$isa>);
            table!(@fn $($feature)?, panel_f32(weight: &Packed, panel: usize, x: &[f32], rows: usize, out: *mut f32)
                = super::panel_f32::<$isa>);
            table!(@fn $($feature)?, quantize(x: &[f32], row: usize, quant: ActivationQuant, out: ActivationWriter)
                = quantize::quantize::<$isa>);
            table!(@fn $($feature)?, norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = elementwise::norm::<$isa>);
            table!(@fn $($feature)?, gate_silu(gate: &mut [f32], up: &[f32]) = elementwise::gate_silu::<$isa>);
            table!(@fn $($feature)?, add(x: &mut [f32], y: &[f32]) = elementwise::add::<$isa>);
            table!(@fn $($feature)?, rotate(head: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) = elementwise::rotate::<$isa>);
            table!(@fn $($feature)?, append(page: *mut u8, shape: KvShape, layer: usize, head: usize, position: usize,
                key: &[f32], value: &[f32]) = kv_page::append::<$isa>);
            table!(@fn $($feature)?, attend(tile: &QueryTile<'_>, scratch: &mut AttentionScratch, out: *mut f32, stride: usize)
                = attention::attend::<$isa>);
            table!(@fn $($feature)?, attend_page(tile: &QueryTile<'_>, page: usize, scratch: &mut AttentionScratch, partials: &mut [f32])
                = attention::attend_page::<$isa>);
            table!(@fn $($feature)?, combine(partials: &[f32], out: &mut [f32]) = attention::combine::<$isa>);
        }
    };
    // A table that differs from another one only in its integer dot products.
    ($module:ident, $isa:ty, $name:literal, $feature:meta, ..$rest:expr) => {
        mod $module {
            use super::*;

            pub(super) const KERNELS: Kernels = Kernels { name: $name, panel_int8, ..$rest };
            table!(@fn $feature, panel_int8(weight: &Packed, panel: usize, x: &QuantizedActivations, out: *mut f32)
                = super::panel_int8::<$isa>);
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
