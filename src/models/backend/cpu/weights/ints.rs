//! How the integers of a k-block are encoded: 32 inputs of eight rows, as eight k-groups of four inputs.
//!
//! ```text
//! U4:  4 vectors, k-group 2j in the low and k-group 2j+1 in the high four bits of vector j
//! U5:  1 vector of fifth bits, of k-group g in bit g, then the low four bits as U4
//! U6:  2 vectors of bits five and six, of k-group g in bits 2 (g % 4) of vector g / 4, then the low four bits as U4
//! I8:  8 vectors
//! ```
//!
//! A vector has 32 bytes: four of each row.

use super::super::isa::{Isa, LANES};

/// An encoding of the integers of one k-block of eight rows.
pub(in super::super) trait PackedInts {
    /// Bytes of one k-block.
    const BYTES: usize;
    /// How many results of AVX2's `maddubs` (each the sum of two products with activations in -127..=127) can be added in
    /// sixteen bits without overflow. 0: the integers are signed, so `maddubs` does not apply to them directly.
    const MADDUBS_PAIRS: usize;

    /// Writes a k-block from words of four inputs of one row each, `[k-group][row]`.
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]);
    /// The integers of one k-block, one vector per k-group.
    ///
    /// # Safety
    /// The processor has the instruction set. `p` points to a k-block.
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::B; 8];
}

/// Unsigned integers of four bits.
pub(in super::super) struct U4;
/// Unsigned integers of five bits.
pub(in super::super) struct U5;
/// Unsigned integers of six bits.
pub(in super::super) struct U6;
/// Signed integers of eight bits.
pub(in super::super) struct I8;

impl PackedInts for U4 {
    const BYTES: usize = 128;
    const MADDUBS_PAIRS: usize = 8; // 8 * 2 * 15 * 127 = 30480

    #[inline(always)]
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]) {
        for (pair, out) in k_groups.as_chunks::<2>().0.iter().zip(out.as_chunks_mut().0) {
            put(out, |row| pair[0][row] & 0x0f0f_0f0f | (pair[1][row] & 0x0f0f_0f0f) << 4);
        }
    }
    #[inline(always)]
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::B; 8] {
        // SAFETY: a k-block is four vectors.
        unsafe {
            let (a, b) = S::nibbles(S::load_bytes(p));
            let (c, d) = S::nibbles(S::load_bytes(p.add(32)));
            let (e, f) = S::nibbles(S::load_bytes(p.add(64)));
            let (g, h) = S::nibbles(S::load_bytes(p.add(96)));
            [a, b, c, d, e, f, g, h]
        }
    }
}

impl PackedInts for U5 {
    const BYTES: usize = 32 + U4::BYTES;
    const MADDUBS_PAIRS: usize = 4; // 4 * 2 * 31 * 127 = 31496

    #[inline(always)]
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]) {
        let (plane, nibbles) = out.split_first_chunk_mut().expect("a k-block begins with the bit plane");
        put(plane, |row| (0..8).fold(0, |plane, k_group| plane | (k_groups[k_group][row] >> 4 & 0x0101_0101) << k_group));
        U4::pack(k_groups, nibbles);
    }
    #[inline(always)]
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::B; 8] {
        // SAFETY: a k-block is the bit plane, then the low four bits.
        unsafe {
            let high = S::load_bytes(p);
            let [a, b, c, d, e, f, g, h] = U4::unpack::<S>(p.add(32));
            [
                S::or_shifted_bits::<4, 16>(a, high),
                S::or_shifted_bits::<3, 16>(b, high),
                S::or_shifted_bits::<2, 16>(c, high),
                S::or_shifted_bits::<1, 16>(d, high),
                S::or_shifted_bits::<0, 16>(e, high),
                S::or_shifted_bits::<-1, 16>(f, high),
                S::or_shifted_bits::<-2, 16>(g, high),
                S::or_shifted_bits::<-3, 16>(h, high),
            ]
        }
    }
}

impl PackedInts for U6 {
    const BYTES: usize = 64 + U4::BYTES;
    const MADDUBS_PAIRS: usize = 2; // 2 * 2 * 63 * 127 = 32004

    #[inline(always)]
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]) {
        let (planes, nibbles) = out.split_at_mut(64);
        for (four, out) in k_groups.as_chunks::<4>().0.iter().zip(planes.as_chunks_mut().0) {
            put(out, |row| (0..4).fold(0, |plane, k_group| plane | (four[k_group][row] >> 4 & 0x0303_0303) << (2 * k_group)));
        }
        U4::pack(k_groups, nibbles);
    }
    #[inline(always)]
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::B; 8] {
        // SAFETY: a k-block is two bit planes, then the low four bits.
        unsafe {
            let (first, second) = (S::load_bytes(p), S::load_bytes(p.add(32)));
            let [a, b, c, d, e, f, g, h] = U4::unpack::<S>(p.add(64));
            [
                S::or_shifted_bits::<4, 48>(a, first),
                S::or_shifted_bits::<2, 48>(b, first),
                S::or_shifted_bits::<0, 48>(c, first),
                S::or_shifted_bits::<-2, 48>(d, first),
                S::or_shifted_bits::<4, 48>(e, second),
                S::or_shifted_bits::<2, 48>(f, second),
                S::or_shifted_bits::<0, 48>(g, second),
                S::or_shifted_bits::<-2, 48>(h, second),
            ]
        }
    }
}

impl PackedInts for I8 {
    const BYTES: usize = 256;
    const MADDUBS_PAIRS: usize = 0;

    #[inline(always)]
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]) {
        k_groups.iter().zip(out.as_chunks_mut().0).for_each(|(k_group, out)| put(out, |row| k_group[row]));
    }
    #[inline(always)]
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::B; 8] {
        // SAFETY: a k-block is eight vectors.
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

/// Writes a vector with one word for each row.
#[inline(always)]
fn put(out: &mut [u8; 32], word: impl Fn(usize) -> u32) {
    let words: [u32; LANES] = std::array::from_fn(word);
    out.as_chunks_mut().0.iter_mut().zip(words).for_each(|(out, word)| *out = word.to_le_bytes());
}
