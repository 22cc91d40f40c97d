//! How weights lie in memory: eight rows interleaved, so that a vector holds one thing of each of eight rows.
//!
//! ```text
//! slab  = 8 output rows x all inputs, one sequential stream of blocks
//! block = GROUP inputs of 8 rows
//!   plain:      [GROUP inputs][8 rows] elements
//!   quantized:  [8 scales][8 biases][vectors of 32 bytes]
//!     8 bits:   a vector = inputs 4j..4j+4 of each row
//!     4 bits:   a vector = inputs 8j..8j+4 of each row in the low, 8j+4..8j+8 in the high four bits
//!   groups of 16 are units whose second half is not stored and counts as zeros
//! ```
//!
//! A vector times a broadcast of four activations leaves eight sums in eight lanes: no sum across lanes,
//! scales are vectors, a thread reads one stream, and one row of activations is computed as a hundred are.

use super::isa::{Isa, LANES, UNIT};
use crate::models::weights::Element;

pub(super) trait Form {
    /// Inputs of one block.
    const GROUP: usize;
    /// Bytes of one block of eight rows.
    const BYTES: usize;

    /// The block's weights as `[GROUP][8]` floats.
    ///
    /// # Safety
    /// `p` points to a block, `out` to `GROUP * 8` floats; the processor has the instruction set.
    unsafe fn tile<S: Isa>(p: *const u8, out: *mut f32);
}

/// A form with integer weights: `w = q * scale + bias`, one scale and bias per block and row.
pub(super) trait Quantized: Form {
    const SIGNED: bool;

    /// The 32 inputs of unit `unit` of the block; inputs beyond the group are zero.
    ///
    /// # Safety
    /// As `tile`.
    unsafe fn quants<S: Isa>(p: *const u8, unit: usize) -> [S::B; 8];
    /// # Safety
    /// As `tile`.
    unsafe fn scales<S: Isa>(p: *const u8) -> (S::F, S::F);
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

macro_rules! plain {
    ($form:ty, $element:ty, $load:ident) => {
        impl Form for $form {
            const GROUP: usize = UNIT;
            const BYTES: usize = UNIT * LANES * size_of::<$element>();

            #[inline(always)]
            unsafe fn tile<S: Isa>(p: *const u8, out: *mut f32) {
                for i in 0..UNIT {
                    // SAFETY: `i` stays within the block and within `out`.
                    unsafe { S::store(out.add(i * LANES), S::$load(p.cast::<$element>().add(i * LANES))) };
                }
            }
        }
    };
}
plain!(F32, f32, load);
plain!(F16, u16, load_f16);
plain!(Bf16, u16, load_bf16);

/// Bytes of eight scales and eight biases: as f16, or as f32 where f16 can't hold them.
pub(super) const fn header(wide: bool) -> usize {
    LANES * 2 * if wide { 4 } else { 2 }
}

/// Units of a group; the last may be half filled.
pub(super) const fn units(group: usize) -> usize {
    group.div_ceil(UNIT)
}

/// In place of the vectors that a group of 16 does not have.
static ZEROS: [u8; 32] = [0; 32];

/// Scales and biases of eight rows.
#[inline(always)]
unsafe fn scales<S: Isa, const WIDE: bool>(p: *const u8) -> (S::F, S::F) {
    // SAFETY: the caller's block begins with this header.
    unsafe {
        if WIDE {
            (S::load(p.cast()), S::load(p.cast::<f32>().add(LANES)))
        } else {
            (S::load_f16(p.cast()), S::load_f16(p.cast::<u16>().add(LANES)))
        }
    }
}

/// Any quantized block as floats.
#[inline(always)]
unsafe fn dequantize<S: Isa, F: Quantized>(p: *const u8, out: *mut f32) {
    // SAFETY: the caller's; indices stay within the block.
    unsafe {
        let (scale, bias) = F::scales::<S>(p);
        for unit in 0..units(F::GROUP) {
            let quants = F::quants::<S>(p, unit);
            for (step, vector) in quants.iter().enumerate().take(F::GROUP / 4) {
                for byte in 0..4 {
                    let q = if F::SIGNED { S::lane_byte::<true>(*vector, byte) } else { S::lane_byte::<false>(*vector, byte) };
                    S::store(out.add((unit * UNIT + step * 4 + byte) * LANES), S::fma(q, scale, bias));
                }
            }
        }
    }
}

/// Unsigned four-bit weights.
pub(super) struct Q4<const G: usize, const WIDE: bool>;
/// Signed eight-bit weights: everything wider than four bits, and the odd widths.
pub(super) struct Q8<const G: usize, const WIDE: bool>;

impl<const G: usize, const WIDE: bool> Form for Q4<G, WIDE> {
    const GROUP: usize = G;
    const BYTES: usize = header(WIDE) + G * LANES / 2;

    #[inline(always)]
    unsafe fn tile<S: Isa>(p: *const u8, out: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { dequantize::<S, Self>(p, out) }
    }
}

impl<const G: usize, const WIDE: bool> Quantized for Q4<G, WIDE> {
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn quants<S: Isa>(p: *const u8, unit: usize) -> [S::B; 8] {
        // SAFETY: four vectors a unit lie behind the header.
        unsafe {
            let p = p.add(header(WIDE) + unit * UNIT * LANES / 2);
            let (a, b) = S::nibbles(S::load_bytes(p));
            let (c, d) = S::nibbles(S::load_bytes(p.add(32)));
            let (e, f) = S::nibbles(S::load_bytes(p.add(64)));
            let (g, h) = S::nibbles(S::load_bytes(p.add(96)));
            [a, b, c, d, e, f, g, h]
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Isa>(p: *const u8) -> (S::F, S::F) {
        // SAFETY: the trait's contract.
        unsafe { scales::<S, WIDE>(p) }
    }
}

impl<const G: usize, const WIDE: bool> Form for Q8<G, WIDE> {
    const GROUP: usize = G;
    const BYTES: usize = header(WIDE) + G * LANES;

    #[inline(always)]
    unsafe fn tile<S: Isa>(p: *const u8, out: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { dequantize::<S, Self>(p, out) }
    }
}

impl<const G: usize, const WIDE: bool> Quantized for Q8<G, WIDE> {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn quants<S: Isa>(p: *const u8, unit: usize) -> [S::B; 8] {
        // SAFETY: eight vectors a unit lie behind the header, or all that a smaller group has.
        unsafe {
            let p = p.add(header(WIDE) + unit * UNIT * LANES);
            let mut all = [S::load_bytes(p); 8];
            let mut step = 1;
            while step < 8 {
                all[step] = S::load_bytes(if step < G / 4 { p.add(step * 32) } else { ZEROS.as_ptr() });
                step += 1;
            }
            all
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Isa>(p: *const u8) -> (S::F, S::F) {
        // SAFETY: the trait's contract.
        unsafe { scales::<S, WIDE>(p) }
    }
}

/// A form by value: what a packed weight remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain(Element),
    Q4 { group: usize, wide: bool },
    Q8 { group: usize, wide: bool },
}

/// Runs `$body` with the type `$form` that `$kind` names; `quantized` leaves the plain ones to `$else`.
macro_rules! with_form {
    (@quantized $kind:expr, $form:ident => $body:expr) => {
        with_form!(@arms $kind, $form => $body, [
            Kind::Plain(_) => unreachable!("plain weights take f32 activations"),
        ])
    };
    ($kind:expr, $form:ident => $body:expr) => {
        with_form!(@arms $kind, $form => $body, [
            Kind::Plain(Element::F32) => { type $form = F32; $body }
            Kind::Plain(Element::F16) => { type $form = F16; $body }
            Kind::Plain(Element::Bf16) => { type $form = Bf16; $body }
        ])
    };
    (@arms $kind:expr, $form:ident => $body:expr, [$($plain:tt)*]) => {
        match $kind {
            $($plain)*
            Kind::Q4 { group: 32, wide: false } => { type $form = Q4<32, false>; $body }
            Kind::Q4 { group: 32, wide: true } => { type $form = Q4<32, true>; $body }
            Kind::Q4 { group: 64, wide: false } => { type $form = Q4<64, false>; $body }
            Kind::Q4 { group: 64, wide: true } => { type $form = Q4<64, true>; $body }
            Kind::Q4 { group: 128, wide: false } => { type $form = Q4<128, false>; $body }
            Kind::Q4 { group: 128, wide: true } => { type $form = Q4<128, true>; $body }
            Kind::Q8 { group: 16, wide: true } => { type $form = Q8<16, true>; $body }
            Kind::Q8 { group: 32, wide: false } => { type $form = Q8<32, false>; $body }
            Kind::Q8 { group: 32, wide: true } => { type $form = Q8<32, true>; $body }
            Kind::Q8 { group: 64, wide: false } => { type $form = Q8<64, false>; $body }
            Kind::Q8 { group: 64, wide: true } => { type $form = Q8<64, true>; $body }
            Kind::Q8 { group: 128, wide: false } => { type $form = Q8<128, false>; $body }
            Kind::Q8 { group: 128, wide: true } => { type $form = Q8<128, true>; $body }
            Kind::Q4 { .. } | Kind::Q8 { .. } => unreachable!("groups are 16, 32, 64 or 128: decided when a weight is read"),
        }
    };
}
pub(super) use with_form;

impl Kind {
    pub(super) fn group(self) -> usize {
        with_form!(self, F => F::GROUP)
    }
    pub(super) fn block_bytes(self) -> usize {
        with_form!(self, F => F::BYTES)
    }
    pub(super) fn is_quantized(self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}
