//! The same weights as GGUF and as safetensors give the same logits.

use crate::gguf_writer::{self, HEAD_DIM, HEADS, HIDDEN_SIZE, INTERMEDIATE_SIZE, KV_HEADS, LAYERS};
use crate::{Random, logits};
use safetensors::tensor::{Dtype, TensorView};
use souffleur::models::codec::TextCodec;
use souffleur::models::network::DecoderSpec;
use souffleur::models::weights::Files;
use souffleur::models::{ModelSource, Prompt};
use std::collections::BTreeSet;
use std::path::Path;

/// An EOS token that no model family adds by itself.
const EOS: u32 = 262;

/// The logits and the tokens of a prompt, the EOS ids and the parsed spec.
fn run(source: ModelSource) -> (Vec<Vec<f32>>, Vec<u32>, BTreeSet<u32>, DecoderSpec) {
    let files = Files::open(&source, None).expect("files");
    let spec = DecoderSpec::parse(&files).expect("a spec");
    let codec = TextCodec::open(&files, &spec).expect("a codec");
    let tokens = codec.encode(&Prompt::Text("while lo in (7, 8): é\r\n\tin".into())).expect("tokens");
    (logits(&files, &tokens), tokens, codec.tokenizer.eos_ids().clone(), spec)
}

/// llama.cpp's converter permutes the q and k rows of llama, so that rows that are rotated together are adjacent.
fn interleave_rope_rows(shape: &[usize], values: &[f32]) -> Vec<f32> {
    let row = |row: usize| &values[row * shape[1]..(row + 1) * shape[1]];
    let mut out = Vec::new();
    for head in 0..shape[0] / HEAD_DIM {
        for i in 0..HEAD_DIM / 2 {
            out.extend(row(head * HEAD_DIM + i));
            out.extend(row(head * HEAD_DIM + HEAD_DIM / 2 + i));
        }
    }
    out
}

fn hugging_face_name(name: &str) -> String {
    [
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk.", "model.layers."),
        ("attn_norm", "input_layernorm"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_", "self_attn."),
        ("self_attn.q.", "self_attn.q_proj."),
        ("self_attn.k.", "self_attn.k_proj."),
        ("self_attn.v.", "self_attn.v_proj."),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn write_folder(folder: &Path, architecture: &str, weights: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> = weights.iter().map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = weights
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (hugging_face_name(name), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor")));
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).expect("a file")).expect("written");
    let (tokens, merges, kinds) = gguf_writer::vocabulary();
    let config = serde_json::json!({
        "model_type": architecture, "hidden_size": HIDDEN_SIZE, "intermediate_size": INTERMEDIATE_SIZE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": tokens.len(), "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": true, "eos_token_id": EOS,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let added: Vec<_> = tokens.iter().zip(&kinds).enumerate().filter(|(_, (_, kind))| **kind == 3).collect();
    let added: Vec<_> = added
        .iter()
        .map(|(id, (token, _))| {
            serde_json::json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let vocabulary: serde_json::Map<_, _> = tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": { "type": "NFC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": qwen }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false } ] },
        "post_processor": null, "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": merges },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("written");
}

#[test]
fn gguf_and_safetensors_give_the_same_logits() {
    for architecture in ["llama", "qwen2"] {
        let folder = tempfile::tempdir().expect("a folder");
        let weights = gguf_writer::weights(&mut Random(7), architecture == "qwen2");
        write_folder(folder.path(), architecture, &weights);
        let gguf: Vec<_> = weights
            .iter()
            .map(|(name, shape, values)| {
                let permuted = architecture == "llama" && (name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight"));
                (name.clone(), shape.clone(), if permuted { interleave_rope_rows(shape, values) } else { values.clone() })
            })
            .collect();
        let path = folder.path().join("small.gguf");
        std::fs::write(&path, gguf_writer::model(architecture, &gguf).u32("tokenizer.ggml.eos_token_id", EOS).bytes()).expect("written");

        let (expected, expected_tokens, expected_eos_ids, spec) = run(ModelSource::Folder(folder.path().into()));
        let (actual, tokens, eos_ids, gguf_spec) = run(ModelSource::File(path));
        assert_eq!(tokens, expected_tokens, "{architecture}");
        assert_eq!(actual, expected, "{architecture}");
        assert!(expected.iter().flatten().all(|x| x.is_finite()) && expected[0] != expected[1], "{architecture}: logits are degenerate");
        assert_eq!((&eos_ids, &expected_eos_ids), (&BTreeSet::from([259, EOS]), &eos_ids), "{architecture}");
        assert_eq!((gguf_spec.architecture, gguf_spec.tied), (spec.architecture, true));
    }
}

#[test]
fn an_untied_lm_head_and_biases_are_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut weights = gguf_writer::weights(&mut Random(8), true);
    let write = |weights: &[_], name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, gguf_writer::model("qwen2", weights).bytes()).expect("written");
        ModelSource::File(path)
    };
    let (tied, ..) = run(write(&weights, "tied.gguf"));
    let embedding = weights[0].clone();
    weights.push(("output.weight".into(), embedding.1, embedding.2.iter().map(|x| 2.0 * x).collect()));
    let (untied, .., spec) = run(write(&weights, "untied.gguf"));
    assert!(!spec.tied);
    let doubled: Vec<Vec<f32>> = tied.iter().map(|row| row.iter().map(|x| 2.0 * x).collect()).collect();
    assert_eq!(untied, doubled);
    for (name, _, values) in &mut weights {
        if name.ends_with(".bias") {
            values.fill(0.0);
        }
    }
    assert_ne!(run(write(&weights, "unbiased.gguf")).0, untied);
}
