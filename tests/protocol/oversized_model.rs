//! A model that is larger than any machine's memory.

use std::{fs, io::Write, path::Path};

/// Writes a valid model whose embedding and `lm_head` have 2^37 f32 values each, as a sparse file.
pub(crate) fn oversized_model(folder: &Path) {
    let (hidden_size, vocab_size, intermediate_size, head_dim) = (1usize << 16, 1usize << 21, 32, 16);
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": hidden_size, "vocab_size": vocab_size, "intermediate_size": intermediate_size,
        "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": head_dim, "max_position_embeddings": 64, "tie_word_embeddings": false, "eos_token_id": 0
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab_size, hidden_size]),
        ("lm_head.weight".to_owned(), vec![vocab_size, hidden_size]),
        ("model.norm.weight".to_owned(), vec![hidden_size]),
        (layer("input_layernorm"), vec![hidden_size]),
        (layer("post_attention_layernorm"), vec![hidden_size]),
        (layer("self_attn.o_proj"), vec![hidden_size, head_dim]),
        (layer("mlp.down_proj"), vec![hidden_size, intermediate_size]),
    ];
    tensors.extend(["q", "k", "v"].map(|name| (layer(&format!("self_attn.{name}_proj")), vec![head_dim, hidden_size])));
    tensors.extend(["gate", "up"].map(|name| (layer(&format!("mlp.{name}_proj")), vec![intermediate_size, hidden_size])));
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<usize>();
        header.insert(name, serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = fs::File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
}
