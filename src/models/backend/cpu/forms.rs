//! How weights lie in memory: eight rows interleaved, so that a vector holds one thing of each of eight rows.
//!
//! ```text
//! slab  = 8 output rows x all inputs, one sequential stream of blocks
//! block = BLOCK inputs of 8 rows
//!   plain:      [BLOCK inputs][8 rows] elements
//!   quantized:  [header: scales of every group][units of 32 inputs]
//! unit  = 32 inputs of 8 rows, in steps: vector s holds inputs 4s..4s+4 of each row
//!   Nibbles:    4 vectors, step 2j in the low and 2j+1 in the high four bits
//!   Fives:      1 vector of fifth bits, of step s in bit s, then the nibbles
//!   Sixes:      2 vectors of bits five and six, of step s in bits 2 (s % 4) of vector s / 4, then the nibbles
//!   Bytes:      8 vectors
//! ```
//!
//! A vector times a broadcast of four activations leaves eight sums in eight lanes: no sum across lanes,
//! scales are vectors, a thread reads one stream, and one row of activations is computed as a hundred are.

use super::headers::{Factors, Header, Pair, Scale, SignedFactors};
use super::isa::{Isa, LANES, UNIT};
use crate::models::weights::FloatType;
use std::marker::PhantomData;

pub(super) trait Form {
    /// Inputs of one block.
    const BLOCK: usize;
    /// Bytes of one block of eight rows.
    const BYTES: usize;

    /// The block's weights as `[BLOCK][8]` floats.
    ///
    /// # Safety
    /// `p` points to a block, `out` to `BLOCK * 8` floats; the processor has the instruction set.
    unsafe fn tile<S: Isa>(p: *const u8, out: *mut f32);
}

/// A form with integer weights: `w = q * scale + bias`, one scale and bias per group and row.
pub(super) trait Quantized: Form {
    type Header: Header;
    type Bits: Bits;

    /// # Safety
    /// `p` points to a block; the processor has the instruction set.
    unsafe fn quants<S: Isa>(p: *const u8, unit: usize) -> [S::B; 8];
}

/// The integers of a unit of eight rows.
pub(super) trait Bits {
    const BYTES: usize;
    /// Sums of two products with activations in -127..=127 that sixteen bits can add up; 0: the integers are signed.
    const SUMS: usize;

    /// Writes a unit; a word is four inputs of one row.
    fn pack(steps: &[[u32; LANES]; 8], out: &mut [u8]);
    /// # Safety
    /// `p` points to a unit; the processor has the instruction set.
    unsafe fn quants<S: Isa>(p: *const u8) -> [S::B; 8];
}

pub(super) struct Plain<E>(PhantomData<E>);
pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

macro_rules! plain {
    ($form:ty, $element:ty, $load:ident) => {
        impl Form for Plain<$form> {
            const BLOCK: usize = UNIT;
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

/// Integers behind a header.
pub(super) struct Packing<B, H>(PhantomData<(B, H)>);

impl<B: Bits, H: Header> Form for Packing<B, H> {
    const BLOCK: usize = H::BLOCK;
    const BYTES: usize = H::BYTES + H::BLOCK / UNIT * B::BYTES;

    #[inline(always)]
    unsafe fn tile<S: Isa>(p: *const u8, out: *mut f32) {
        // SAFETY: the trait's contract; indices stay within the block.
        unsafe {
            for input in (0..Self::BLOCK).step_by(4) {
                let step = Self::quants::<S>(p, input / UNIT)[input % UNIT / 4];
                let (scale, bias) = H::scales::<S>(p, input / H::GROUP);
                for byte in 0..4 {
                    let q = if B::SUMS == 0 { S::lane_byte::<true>(step, byte) } else { S::lane_byte::<false>(step, byte) };
                    S::store(out.add((input + byte) * LANES), S::fma(q, scale, bias));
                }
            }
        }
    }
}

impl<B: Bits, H: Header> Quantized for Packing<B, H> {
    type Header = H;
    type Bits = B;

    #[inline(always)]
    unsafe fn quants<S: Isa>(p: *const u8, unit: usize) -> [S::B; 8] {
        // SAFETY: the trait's contract.
        unsafe { B::quants::<S>(p.add(H::BYTES + unit * B::BYTES)) }
    }
}

pub(super) struct Nibbles;
pub(super) struct Fives;
pub(super) struct Sixes;
pub(super) struct Bytes;

impl Bits for Nibbles {
    const BYTES: usize = 128;
    const SUMS: usize = 8; // 8 * 2 * 15 * 127 = 30480

    #[inline(always)]
    fn pack(steps: &[[u32; LANES]; 8], out: &mut [u8]) {
        for (pair, out) in steps.as_chunks::<2>().0.iter().zip(out.as_chunks_mut().0) {
            put(out, |row| pair[0][row] & 0x0f0f_0f0f | (pair[1][row] & 0x0f0f_0f0f) << 4);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(p: *const u8) -> [S::B; 8] {
        // SAFETY: four vectors a unit.
        unsafe {
            let (a, b) = S::nibbles(S::load_bytes(p));
            let (c, d) = S::nibbles(S::load_bytes(p.add(32)));
            let (e, f) = S::nibbles(S::load_bytes(p.add(64)));
            let (g, h) = S::nibbles(S::load_bytes(p.add(96)));
            [a, b, c, d, e, f, g, h]
        }
    }
}

impl Bits for Fives {
    const BYTES: usize = 32 + Nibbles::BYTES;
    const SUMS: usize = 4; // 4 * 2 * 31 * 127 = 31496

    #[inline(always)]
    fn pack(steps: &[[u32; LANES]; 8], out: &mut [u8]) {
        let (plane, nibbles) = out.split_first_chunk_mut().expect("a unit");
        put(plane, |row| (0..8).fold(0, |plane, step| plane | (steps[step][row] >> 4 & 0x0101_0101) << step));
        Nibbles::pack(steps, nibbles);
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(p: *const u8) -> [S::B; 8] {
        // SAFETY: the plane, then the nibbles.
        unsafe {
            let high = S::load_bytes(p);
            let [a, b, c, d, e, f, g, h] = Nibbles::quants::<S>(p.add(32));
            [
                S::insert::<4, 16>(a, high),
                S::insert::<3, 16>(b, high),
                S::insert::<2, 16>(c, high),
                S::insert::<1, 16>(d, high),
                S::insert::<0, 16>(e, high),
                S::insert::<-1, 16>(f, high),
                S::insert::<-2, 16>(g, high),
                S::insert::<-3, 16>(h, high),
            ]
        }
    }
}

impl Bits for Sixes {
    const BYTES: usize = 64 + Nibbles::BYTES;
    const SUMS: usize = 2; // 2 * 2 * 63 * 127 = 32004

    #[inline(always)]
    fn pack(steps: &[[u32; LANES]; 8], out: &mut [u8]) {
        let (planes, nibbles) = out.split_at_mut(64);
        for (four, out) in steps.as_chunks::<4>().0.iter().zip(planes.as_chunks_mut().0) {
            put(out, |row| (0..4).fold(0, |plane, step| plane | (four[step][row] >> 4 & 0x0303_0303) << (2 * step)));
        }
        Nibbles::pack(steps, nibbles);
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(p: *const u8) -> [S::B; 8] {
        // SAFETY: two planes, then the nibbles.
        unsafe {
            let (first, second) = (S::load_bytes(p), S::load_bytes(p.add(32)));
            let [a, b, c, d, e, f, g, h] = Nibbles::quants::<S>(p.add(64));
            [
                S::insert::<4, 48>(a, first),
                S::insert::<2, 48>(b, first),
                S::insert::<0, 48>(c, first),
                S::insert::<-2, 48>(d, first),
                S::insert::<4, 48>(e, second),
                S::insert::<2, 48>(f, second),
                S::insert::<0, 48>(g, second),
                S::insert::<-2, 48>(h, second),
            ]
        }
    }
}

impl Bits for Bytes {
    const BYTES: usize = 256;
    const SUMS: usize = 0;

    #[inline(always)]
    fn pack(steps: &[[u32; LANES]; 8], out: &mut [u8]) {
        steps.iter().zip(out.as_chunks_mut().0).for_each(|(step, out)| put(out, |row| step[row]));
    }
    #[inline(always)]
    unsafe fn quants<S: Isa>(p: *const u8) -> [S::B; 8] {
        // SAFETY: eight vectors a unit.
        unsafe {
            [
                S::load_bytes(p),
                S::load_bytes(p.add(32)),
                S::load_bytes(p.add(64)),
                S::load_bytes(p.add(96)),
                S::load_bytes(p.add(128)),
                S::load_bytes(p.add(160)),
                S::load_bytes(p.add(192)),
                S::load_bytes(p.add(224)),
            ]
        }
    }
}

/// A vector of one word for each row.
#[inline(always)]
fn put(out: &mut [u8; 32], word: impl Fn(usize) -> u32) {
    let words: [u32; LANES] = std::array::from_fn(word);
    out.as_chunks_mut().0.iter_mut().zip(words).for_each(|(out, word)| *out = word.to_le_bytes());
}

/// A form by value: what a packed weight remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the format's own names")]
pub(super) enum Kind {
    Plain(FloatType),
    /// MLX's: up to four bits in nibbles, up to six in sixes, and eight.
    Affine {
        bits: usize,
        group: usize,
        wide: bool,
    },
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    /// And IQ4_NL.
    Q8_0,
    Q2_K,
    Q4_K,
    Q5_K,
    /// And Q3_K.
    Q6_K,
}

/// Runs `$body` with the type `$form` that `$kind` names; `quantized` leaves the plain ones out.
macro_rules! with_form {
    (@quantized $kind:expr, $form:ident => $body:expr) => {
        with_form!(@arms $kind, $form => $body, [
            Kind::Plain(_) => unreachable!("plain weights take f32 activations"),
        ])
    };
    ($kind:expr, $form:ident => $body:expr) => {
        with_form!(@arms $kind, $form => $body, [
            Kind::Plain(FloatType::F32) => { type $form = Plain<F32>; $body }
            Kind::Plain(FloatType::F16) => { type $form = Plain<F16>; $body }
            Kind::Plain(FloatType::Bf16) => { type $form = Plain<Bf16>; $body }
        ])
    };
    (@arms $kind:expr, $form:ident => $body:expr, [$($plain:tt)*]) => {
        match $kind {
            $($plain)*
            Kind::Affine { bits: 4, group: 32, wide: false } | Kind::Q4_1 => { type $form = Packing<Nibbles, Pair<32, false, 0>>; $body }
            Kind::Affine { bits: 4, group: 32, wide: true } => { type $form = Packing<Nibbles, Pair<32, true, 0>>; $body }
            Kind::Affine { bits: 4, group: 64, wide: false } => { type $form = Packing<Nibbles, Pair<64, false, 0>>; $body }
            Kind::Affine { bits: 4, group: 64, wide: true } => { type $form = Packing<Nibbles, Pair<64, true, 0>>; $body }
            Kind::Affine { bits: 4, group: 128, wide: false } => { type $form = Packing<Nibbles, Pair<128, false, 0>>; $body }
            Kind::Affine { bits: 4, group: 128, wide: true } => { type $form = Packing<Nibbles, Pair<128, true, 0>>; $body }
            Kind::Affine { bits: 6, group: 32, wide: false } => { type $form = Packing<Sixes, Pair<32, false, 0>>; $body }
            Kind::Affine { bits: 6, group: 32, wide: true } => { type $form = Packing<Sixes, Pair<32, true, 0>>; $body }
            Kind::Affine { bits: 6, group: 64, wide: false } => { type $form = Packing<Sixes, Pair<64, false, 0>>; $body }
            Kind::Affine { bits: 6, group: 64, wide: true } => { type $form = Packing<Sixes, Pair<64, true, 0>>; $body }
            Kind::Affine { bits: 6, group: 128, wide: false } => { type $form = Packing<Sixes, Pair<128, false, 0>>; $body }
            Kind::Affine { bits: 6, group: 128, wide: true } => { type $form = Packing<Sixes, Pair<128, true, 0>>; $body }
            Kind::Affine { bits: 8, group: 32, wide: false } => { type $form = Packing<Bytes, Pair<32, false, 128>>; $body }
            Kind::Affine { bits: 8, group: 32, wide: true } => { type $form = Packing<Bytes, Pair<32, true, 128>>; $body }
            Kind::Affine { bits: 8, group: 64, wide: false } => { type $form = Packing<Bytes, Pair<64, false, 128>>; $body }
            Kind::Affine { bits: 8, group: 64, wide: true } => { type $form = Packing<Bytes, Pair<64, true, 128>>; $body }
            Kind::Affine { bits: 8, group: 128, wide: false } => { type $form = Packing<Bytes, Pair<128, false, 128>>; $body }
            Kind::Affine { bits: 8, group: 128, wide: true } => { type $form = Packing<Bytes, Pair<128, true, 128>>; $body }
            Kind::Affine { .. } => unreachable!("widths and groups are decided when a weight is read"),
            Kind::Q4_0 => { type $form = Packing<Nibbles, Scale<8>>; $body }
            Kind::Q5_0 => { type $form = Packing<Fives, Scale<16>>; $body }
            Kind::Q5_1 => { type $form = Packing<Fives, Pair<32, false, 0>>; $body }
            Kind::Q8_0 => { type $form = Packing<Bytes, Scale<0>>; $body }
            Kind::Q2_K => { type $form = Packing<Nibbles, Factors<16>>; $body }
            Kind::Q4_K => { type $form = Packing<Nibbles, Factors<32>>; $body }
            Kind::Q5_K => { type $form = Packing<Fives, Factors<32>>; $body }
            Kind::Q6_K => { type $form = Packing<Sixes, SignedFactors>; $body }
        }
    };
}
pub(super) use with_form;

impl Kind {
    pub(super) fn block(self) -> usize {
        with_form!(self, F => F::BLOCK)
    }
    pub(super) fn block_bytes(self) -> usize {
        with_form!(self, F => F::BYTES)
    }
    /// How activations that meet this weight are quantized; not at all for plain weights.
    pub(super) fn grouping(self) -> Option<Grouping> {
        match self {
            Self::Plain(_) => None,
            _ => Some(with_form!(@quantized self, F => Grouping::of::<F>())),
        }
    }
}

/// Groups of activations in eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grouping {
    /// Inputs that share a scale.
    pub(super) span: usize,
    /// Inputs that are summed up, for the weights' biases.
    pub(super) group: usize,
    /// Sums are whole numbers.
    pub(super) whole: bool,
}

impl Grouping {
    fn of<F: Quantized>() -> Self {
        let (group, whole) = (F::Header::GROUP, F::Header::TWO_LEVELS);
        Self { span: if whole { F::BLOCK } else { group }, group, whole }
    }
}
