//! Thousands of randomly damaged files: no panic, and no allocation larger than a valid file of this size needs.

use crate::refusals::{load, small};
use crate::{Random, largest_allocation};

/// A copy of `good` with a few random changes in its header.
fn mutate(random: &mut Random, good: &[u8], header: usize) -> Vec<u8> {
    const NUMBERS: [u64; 12] = [0, 1, 2, 31, 255, 256, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, i64::MAX as u64, u64::MAX];
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(header.min(bytes.len()));
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 | 3 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let count = [4, 8][random.below(2)].min(bytes.len() - at);
                bytes[at..at + count].copy_from_slice(&number[..count]);
            }
            4 => _ = bytes.splice(at..at, std::iter::repeat_n(random.next() as u8, random.below(9))).count(),
            5 => _ = bytes.drain(at..(at + random.below(9)).min(bytes.len())).count(),
            _ => {
                let from = random.below(header.min(bytes.len()));
                let count = random.below(64).min(bytes.len() - at.max(from));
                bytes.copy_within(from..from + count, at);
            }
        }
        if bytes.is_empty() {
            return bytes;
        }
    }
    if random.below(20) == 0 {
        bytes.truncate(random.below(bytes.len()));
    }
    bytes
}

#[test]
fn mutated_files_cause_no_panic_and_no_large_allocation() {
    let random = &mut Random(10);
    let good = small().bytes();
    let header = good.len() - small().tensors.iter().map(|tensor| tensor.3.len()).sum::<usize>();
    // The tokenizer's regular expressions and character tables take some hundred KiB for any file.
    let limit = largest_allocation(|| load(good.clone()).expect("a good file")) + (64 << 10);
    let (mut refused, rounds) = (0, 4000);
    for round in 0..rounds {
        let bytes = mutate(random, &good, header);
        let largest = largest_allocation(|| refused += usize::from(load(bytes).is_err()));
        assert!(largest <= limit, "round {round}: an allocation of {largest} bytes; the limit is {limit}");
    }
    assert!(refused > rounds / 2, "only {refused} of {rounds} were refused: the mutations have no effect");
}
