//! Writes the fuzzing seeds: small models with every tensor type except K-quants, whose blocks do not divide these rows.

use crate::Random;
use crate::gguf_writer::{self, HEADS, HIDDEN_SIZE, INTERMEDIATE_SIZE, KV_HEADS};

/// ggml type number, elements per block, bytes per block.
const BLOCKS: [(u32, usize, usize); 9] =
    [(1, 1, 2), (30, 1, 2), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34), (20, 32, 18), (0, 1, 4)];

#[test]
#[ignore = "writes fuzz/seeds"]
fn write_seeds() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds");
    for (name, architecture, version) in [("llama", "llama", 3), ("qwen2", "qwen2", 2)] {
        let mut file = gguf_writer::model(architecture, &gguf_writer::weights(&mut Random(13), architecture == "qwen2"));
        for (index, (name, dimensions, kind, bytes)) in file.tensors.iter_mut().enumerate() {
            if dimensions.len() == 2 {
                // The embedding is half of the model, so it gets a small type.
                let (number, inputs, size) = if name == "token_embd.weight" { BLOCKS[2] } else { BLOCKS[index % 8] };
                let count = dimensions.iter().product::<u64>() as usize / inputs * size;
                (*kind, *bytes) = (number, bytes.iter().copied().cycle().take(count).collect());
            }
        }
        std::fs::write(format!("{folder}/{name}.gguf"), file.bytes_with(version, 32)).expect("written");
    }
    // Metadata without tensors, with a value of every type.
    let mut file = gguf_writer::File::default();
    for (kind, size) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8)] {
        file.value(&format!("kind.{kind}"), kind, &vec![1; size]);
    }
    file.text("a", "b")
        .texts("list", &["a".into(), String::new()])
        .i32s("numbers", &[HIDDEN_SIZE as i32, INTERMEDIATE_SIZE as i32, HEADS as i32, KV_HEADS as i32]);
    std::fs::write(format!("{folder}/metadata.gguf"), file.bytes()).expect("written");
}
