//! How the quantized weights of a k-block are encoded.
//!
//! A k-block is a tile of 8 rows x 32 columns of weights (k is the dimension that a matrix product sums over). A k-group is four
//! of its columns, so a k-block has k-groups 0 to 7.
//!
//! ```text
//! U4:  4 vectors; vector j (0 to 3) has k-group 2j in the low four bits of its bytes and k-group 2j+1 in the high four bits
//! U5:  1 vector, whose bit g is bit 4 of k-group g; then bits 0 to 3 as U4
//! U6:  2 vectors; bits 2i and 2i+1 of vector j are bits 4 and 5 of k-group 4j+i; then bits 0 to 3 as U4
//! I8:  8 vectors, one for each k-group
//! ```
//!
//! Bits count from 0, the lowest. A vector has 32 bytes: for each of the eight rows four bytes, one for each column of a k-group.

use super::super::isa::{Isa, LANES, SIGNED_WEIGHTS};

/// An encoding of the integers of one k-block.
pub(in super::super) trait IntEncoding {
    /// Bytes of an encoded k-block.
    const BYTES: usize;
    /// How many results of AVX2's `maddubs` (each the sum of two products with activations in -127..=127) fit in an i16 sum.
    /// `SIGNED_WEIGHTS` for signed integers, which `maddubs` does not take.
    const MADDUBS_SUMS_MAX: usize;

    /// Encodes a k-block. `k_groups[g][row]` has the four weights of k-group `g` in that row, one per byte, the first in the
    /// lowest byte.
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]);
    /// The integers of a k-block, one vector per k-group.
    ///
    /// # Safety
    /// The processor has the instruction set of `S`. `p` points to an encoded k-block.
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::U8x32; 8];
}

/// The encoding of unsigned 4-bit integers.
pub(in super::super) struct U4;
/// The encoding of unsigned 5-bit integers.
pub(in super::super) struct U5;
/// The encoding of unsigned 6-bit integers.
pub(in super::super) struct U6;
/// The encoding of signed 8-bit integers.
pub(in super::super) struct I8;

impl IntEncoding for U4 {
    const BYTES: usize = 128;
    const MADDUBS_SUMS_MAX: usize = 8; // 8 * 2 * 15 * 127 = 30480

    #[inline(always)]
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]) {
        for (pair, out) in k_groups.as_chunks::<2>().0.iter().zip(out.as_chunks_mut().0) {
            write_vector(out, |row| pair[0][row] & 0x0f0f_0f0f | (pair[1][row] & 0x0f0f_0f0f) << 4);
        }
    }
    #[inline(always)]
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::U8x32; 8] {
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

impl IntEncoding for U5 {
    const BYTES: usize = 32 + U4::BYTES;
    const MADDUBS_SUMS_MAX: usize = 4; // 4 * 2 * 31 * 127 = 31496

    #[inline(always)]
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]) {
        let (high_bits, nibbles) = out.split_first_chunk_mut().expect("a k-block begins with the vector of high bits");
        write_vector(high_bits, |row| (0..8).fold(0, |word, k_group| word | (k_groups[k_group][row] >> 4 & 0x0101_0101) << k_group));
        U4::pack(k_groups, nibbles);
    }
    #[inline(always)]
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::U8x32; 8] {
        // SAFETY: a k-block is one vector of high bits, then the low four bits.
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

impl IntEncoding for U6 {
    const BYTES: usize = 64 + U4::BYTES;
    const MADDUBS_SUMS_MAX: usize = 2; // 2 * 2 * 63 * 127 = 32004

    #[inline(always)]
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]) {
        let (high_bits, nibbles) = out.split_at_mut(64);
        for (quad, out) in k_groups.as_chunks::<4>().0.iter().zip(high_bits.as_chunks_mut().0) {
            write_vector(out, |row| (0..4).fold(0, |word, k_group| word | (quad[k_group][row] >> 4 & 0x0303_0303) << (2 * k_group)));
        }
        U4::pack(k_groups, nibbles);
    }
    #[inline(always)]
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::U8x32; 8] {
        // SAFETY: a k-block is two vectors of high bits, then the low four bits.
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

impl IntEncoding for I8 {
    const BYTES: usize = 256;
    const MADDUBS_SUMS_MAX: usize = SIGNED_WEIGHTS;

    #[inline(always)]
    fn pack(k_groups: &[[u32; LANES]; 8], out: &mut [u8]) {
        k_groups.iter().zip(out.as_chunks_mut().0).for_each(|(k_group, out)| write_vector(out, |row| k_group[row]));
    }
    #[inline(always)]
    unsafe fn unpack<S: Isa>(p: *const u8) -> [S::U8x32; 8] {
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

/// Writes a vector: four bytes for each row.
#[inline(always)]
fn write_vector(out: &mut [u8; 32], word_of_row: impl Fn(usize) -> u32) {
    let words: [u32; LANES] = std::array::from_fn(word_of_row);
    out.as_chunks_mut().0.iter_mut().zip(words).for_each(|(out, word)| *out = word.to_le_bytes());
}
