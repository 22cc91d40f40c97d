//! A GGUF writer, and a small model in that format.

use crate::Random;

/// Metadata and tensors in file order.
#[derive(Clone, Default)]
pub(crate) struct File {
    pub(crate) values: Vec<(String, Vec<u8>)>,
    pub(crate) tensors: Vec<Tensor>,
}

/// Name, dimensions (columns first), ggml type number, bytes.
pub(crate) type Tensor = (String, Vec<u64>, u32, Vec<u8>);

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl File {
    /// Sets a value by its GGUF type number and bytes; replaces an earlier one of the same key.
    pub(crate) fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) -> &mut Self {
        self.remove(key);
        self.values.push((key.into(), [&kind.to_le_bytes(), bytes].concat()));
        self
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.values.retain(|(other, _)| other != key);
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.value(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.value(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.value(key, 7, &[value.into()])
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        let mut bytes = Vec::new();
        string(&mut bytes, value);
        self.value(key, 8, &bytes)
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[String]) -> &mut Self {
        let mut bytes = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|value| string(&mut bytes, value));
        self.value(key, 9, &bytes)
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let mut bytes = [&5u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.value(key, 9, &bytes)
    }

    pub(crate) fn tensor(&mut self, name: &str, dimensions: &[u64], kind: u32, bytes: Vec<u8>) -> &mut Self {
        self.tensors.push((name.into(), dimensions.into(), kind, bytes));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes_with(3, 32)
    }

    pub(crate) fn bytes_with(&self, version: u32, alignment: usize) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            string(&mut out, key);
            out.extend(value);
        }
        let mut offset = 0usize;
        for (name, dimensions, kind, bytes) in &self.tensors {
            string(&mut out, name);
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + bytes.len()).next_multiple_of(alignment);
        }
        for (_, _, _, bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(alignment), 0);
            out.extend(bytes);
        }
        out
    }
}

/// Sizes of the small model.
pub(crate) const HIDDEN_SIZE: usize = 64;
pub(crate) const INTERMEDIATE_SIZE: usize = 96;
pub(crate) const LAYERS: usize = 2;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_DIM: usize = 16;

/// GPT-2's byte-to-character table: printable bytes are themselves, the others are numbered from U+0100.
fn byte_text(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    if printable(byte) { char::from(byte) } else { char::from_u32(0x100 + before).expect("below U+0200") }
}

/// Tokens, merges and token types: all bytes, three merges and four control tokens.
pub(crate) fn vocabulary() -> (Vec<String>, Vec<String>, Vec<i32>) {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_text(byte).to_string()).collect();
    tokens.extend(["in", "Ġin", "lo"].map(String::from));
    let mut kinds = vec![1; tokens.len()];
    tokens.extend(["<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"].map(String::from));
    kinds.resize(tokens.len(), 3);
    (tokens, ["i n", "Ġ in", "l o"].map(String::from).to_vec(), kinds)
}

/// Names in GGUF, shapes (rows first) and values of the weights.
pub(crate) fn weights(random: &mut Random, biases: bool) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let vocabulary = vocabulary().0.len();
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut shapes =
        vec![("token_embd.weight".to_owned(), vec![vocabulary, HIDDEN_SIZE]), ("output_norm.weight".into(), vec![HIDDEN_SIZE])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| shapes.push((format!("blk.{layer}.{name}"), shape.to_vec()));
        add("attn_norm.weight", &[HIDDEN_SIZE]);
        add("attn_q.weight", &[q, HIDDEN_SIZE]);
        add("attn_k.weight", &[kv, HIDDEN_SIZE]);
        add("attn_v.weight", &[kv, HIDDEN_SIZE]);
        if biases {
            add("attn_q.bias", &[q]);
            add("attn_k.bias", &[kv]);
            add("attn_v.bias", &[kv]);
        }
        add("attn_output.weight", &[HIDDEN_SIZE, q]);
        add("ffn_norm.weight", &[HIDDEN_SIZE]);
        add("ffn_gate.weight", &[INTERMEDIATE_SIZE, HIDDEN_SIZE]);
        add("ffn_up.weight", &[INTERMEDIATE_SIZE, HIDDEN_SIZE]);
        add("ffn_down.weight", &[HIDDEN_SIZE, INTERMEDIATE_SIZE]);
    }
    let fill = |(name, shape): (String, Vec<usize>)| {
        let count = shape.iter().product();
        let scale = if name.ends_with("norm.weight") { 1.0 } else { 0.3 };
        let values = (0..count).map(|_| random.float() * scale).collect();
        (name, shape, values)
    };
    shapes.into_iter().map(fill).collect()
}

/// A complete model of this architecture with f32 weights.
pub(crate) fn model(architecture: &str, weights: &[(String, Vec<usize>, Vec<f32>)]) -> File {
    let mut file = File::default();
    let (tokens, merges, kinds) = vocabulary();
    let mut number = |name: &str, value: usize| _ = file.u32(&format!("{architecture}.{name}"), value as u32);
    number("block_count", LAYERS);
    number("context_length", 512);
    number("embedding_length", HIDDEN_SIZE);
    number("feed_forward_length", INTERMEDIATE_SIZE);
    number("attention.head_count", HEADS);
    number("attention.head_count_kv", KV_HEADS);
    file.text("general.architecture", architecture)
        .f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&format!("{architecture}.rope.freq_base"), 10_000.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .texts("tokenizer.ggml.merges", &merges)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.eos_token_id", 259);
    for (name, shape, values) in weights {
        let dimensions: Vec<u64> = shape.iter().rev().map(|&d| d as u64).collect();
        file.tensor(name, &dimensions, 0, values.iter().flat_map(|value| value.to_le_bytes()).collect());
    }
    file
}
