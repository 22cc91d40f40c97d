//! Tensor types by their ggml number, and the size of their data.

use crate::gguf_writer::File;
use souffleur::models::weights::Gguf;

/// Number, name, elements per block and bytes per block, from ggml.
const TYPES: [(u32, &str, usize, usize); 14] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (20, "IQ4_NL", 32, 18),
    (30, "BF16", 1, 2),
];

/// A file with one tensor of three rows, `columns` elements each, and `bytes` bytes of data.
fn file(number: u32, columns: usize, bytes: usize) -> Vec<u8> {
    File::default().tensor("t", &[columns as u64, 3], number, vec![1; bytes]).bytes()
}

#[test]
fn type_numbers_and_block_sizes_are_those_of_ggml() {
    for (number, name, elements, bytes) in TYPES {
        let whole = file(number, 2 * elements, 6 * bytes);
        let gguf = Gguf::parse("a.gguf", &whole).expect(name);
        let tensor = &gguf.tensors[0];
        assert_eq!((tensor.tensor_type.to_string().as_str(), tensor.data.len()), (name, 6 * bytes), "type {number}");
        assert_eq!(tensor.shape, [3, 2 * elements], "{name}");
        assert!(Gguf::parse("a.gguf", &file(number, 2 * elements, 6 * bytes - 1)).is_err(), "{name} with one byte missing");
        if elements > 1 {
            assert!(Gguf::parse("a.gguf", &file(number, elements / 2, 6 * bytes)).is_err(), "{name} with rows of half a block");
        }
    }
    let others = (0..64).filter(|number| TYPES.iter().all(|(known, ..)| known != number));
    for number in others {
        assert!(Gguf::parse("a.gguf", &file(number, 256, 1 << 14)).is_err(), "type {number}");
    }
}
