//! Invalid GGUF files: every error names the field and, if there is one, its byte offset.

use crate::Random;
use crate::gguf_writer::{self, File, Tensor};
use souffleur::models::backend::{Backend, cpu::Cpu};
use souffleur::models::codec::TextCodec;
use souffleur::models::network::{Decoder, DecoderSpec};
use souffleur::models::weights::{Files, Gguf, Tensors};
use souffleur::models::{Activations, CpuSettings, Error};

/// Does everything that happens to a file before the first token.
pub(crate) fn load(bytes: Vec<u8>) -> Result<(), Error> {
    let files = Files::of_gguf("a.gguf", bytes);
    let spec = DecoderSpec::parse(&files)?;
    let tensors = Tensors::open(&files)?;
    TextCodec::open(&files, &spec)?;
    tensors.expect(&spec.parameters())?;
    let backend = Cpu::open(&spec, &CpuSettings { threads: 1, activations: Activations::Int8 })?;
    Decoder::load(spec, &tensors, backend, &mut |_, _| {}).map(drop)
}

pub(crate) fn small() -> File {
    gguf_writer::model("llama", &gguf_writer::weights(&mut Random(9), false))
}

/// The field and the reason of the error.
fn refusal(bytes: Vec<u8>) -> String {
    match load(bytes) {
        Err(Error::ModelFile { file, field, reason }) => {
            assert_eq!(file, "a.gguf");
            format!("{field}: {reason}")
        }
        other => panic!("not an error in the file: {other:?}"),
    }
}

fn changed(change: impl FnOnce(&mut File)) -> String {
    let mut file = small();
    change(&mut file);
    refusal(file.bytes())
}

#[test]
fn versions_2_and_3_and_other_alignments_are_read() {
    assert_eq!(load(small().bytes()), Ok(()));
    assert_eq!(load(small().bytes_with(2, 32)), Ok(()));
    let mut file = small();
    file.u32("general.alignment", 128);
    assert_eq!(load(file.bytes_with(3, 128)), Ok(()));
}

#[test]
fn a_file_merged_from_a_split_is_read() {
    for count in [0u16, 1] {
        let mut file = small();
        file.value("split.count", 2, &count.to_le_bytes());
        assert_eq!(load(file.bytes()), Ok(()), "{count}");
    }
}

#[test]
fn the_head_is_checked() {
    let with = |at: usize, new: &[u8]| {
        let mut bytes = small().bytes();
        bytes[at..at + new.len()].copy_from_slice(new);
        refusal(bytes)
    };
    assert_eq!(refusal(Vec::new()), "magic at byte 0: needs 4 bytes, but only 0 are left in the file");
    assert_eq!(with(0, b"PK\x03\x04"), "magic at byte 0: this is not a GGUF file");
    assert_eq!(with(4, &[1, 0, 0, 0]), "version at byte 4: 1; supported are 2 and 3");
    assert_eq!(with(4, &[0, 0, 0, 3]), "version at byte 4: big-endian files are not supported");
    let largest = u64::MAX.to_le_bytes();
    assert_eq!(with(8, &largest), "tensor count at byte 8: 18446744073709551615 is more than the supported 65536");
    assert_eq!(with(16, &largest), "metadata count at byte 16: 18446744073709551615 is more than the supported 65536");
    assert_eq!(with(24, &largest), "key 0 at byte 24: 18446744073709551615 bytes, more than the supported 65536");
}

#[test]
fn values_are_checked() {
    let huge = (u64::MAX / 2).to_le_bytes();
    let list = |kind: u32, count: &[u8]| [&kind.to_le_bytes()[..], count].concat();
    let check = |refusal: String, parts: &[&str]| {
        assert!(parts.iter().all(|part| refusal.contains(part)), "{refusal:?} does not contain {parts:?}");
    };
    check(changed(|file| _ = file.value("x", 13, &[])), &["x at byte", "value type 13; supported are 0 to 12"]);
    check(changed(|file| _ = file.value("x", 7, &[2])), &["x at byte", "2 is neither true nor false"]);
    check(changed(|file| _ = file.value("x", 8, &huge)), &["x at byte", "needs 9223372036854775807 bytes, but only"]);
    check(changed(|file| _ = file.value("x", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])), &["x at byte", "utf-8"]);
    check(changed(|file| _ = file.value("x", 9, &list(5, &huge))), &["x at byte", "an array of 9223372036854775807 values, but only"]);
    check(changed(|file| _ = file.value("x", 9, &list(8, &huge))), &["x at byte", "an array of 9223372036854775807 values, but only"]);
    check(changed(|file| _ = file.value("x", 9, &list(9, &huge))), &["x at byte", "an array of value type 9; supported are"]);
    check(changed(|file| file.values.push(file.values[0].clone())), &["llama.block_count at byte", "duplicate key"]);
    check(changed(|file| _ = file.u32("general.alignment", 48)), &["general.alignment at byte", "48 is not a power of two"]);
    check(changed(|file| _ = file.u32("general.alignment", 0)), &["general.alignment at byte", "not an integer from 1 to 65536"]);
}

#[test]
fn a_long_key_is_truncated_in_the_error() {
    let refusal = changed(|file| _ = file.value(&"k".repeat(5000), 13, &[]));
    let (key, reason) = refusal.split_once('…').expect("truncated");
    assert_eq!((key.len(), reason.starts_with(" at byte ")), (1024, true), "{refusal}");
}

#[test]
fn tensors_are_checked() {
    let tensor = |index: usize, change: &dyn Fn(&mut Tensor)| changed(|file| change(&mut file.tensors[index]));
    let check = |refusal: String, part: &str| assert!(refusal.contains(" at byte ") && refusal.contains(part), "{refusal:?}");
    check(tensor(0, &|t| t.2 = 23), "ggml type 23; supported are F32, F16, BF16, Q4_0");
    check(tensor(0, &|t| t.1 = vec![]), "0 dimensions; supported are 1 to 4");
    check(tensor(0, &|t| t.1 = vec![1; 5]), "5 dimensions; supported are 1 to 4");
    check(tensor(0, &|t| t.1 = vec![1 << 40, 1 << 40]), "is empty or too large");
    check(tensor(0, &|t| t.1 = vec![0, 7]), "is empty or too large");
    check(tensor(0, &|t| (t.1, t.2) = (vec![33, 1], 8)), "rows of 33 elements are not a multiple of the block size 32");
    check(tensor(0, &|t| t.1 = vec![64, 1 << 30]), "bytes at offset 0 of the data, but the file has");
    check(tensor(0, &|t| t.1 = vec![64, 264]), "its data overlap those of token_embd.weight");
    check(changed(|file| _ = file.tensor("output_norm.weight", &[1], 0, vec![0; 4])), "duplicate tensor name");
    let mut bytes = small().bytes();
    let at = bytes.windows(18).position(|window| window == b"output_norm.weight").expect("a name") + 18 + 4 + 8 + 4;
    bytes[at] += 4;
    check(refusal(bytes), "is not aligned to 32");
    let mut cut = small().bytes();
    cut.pop();
    check(refusal(cut), "blk.1.ffn_down.weight");
}

/// Gives the last control token this length in bytes.
fn control_token_of(file: &mut File, bytes: usize) {
    let (mut tokens, ..) = gguf_writer::vocabulary();
    tokens[262] = "x".repeat(bytes);
    file.texts("tokenizer.ggml.tokens", &tokens);
}

#[test]
fn unsupported_metadata_and_tensors_are_named() {
    let check = |refusal: String, whole: &str| assert!(refusal.contains(whole), "{refusal:?} is not {whole:?}");
    check(changed(|file| _ = file.text("general.architecture", "mamba")), "\"mamba\" is not supported; supported are llama and qwen2");
    check(changed(|file| file.remove("general.architecture")), "general.architecture: missing");
    check(changed(|file| _ = file.text("llama.rope.scaling.type", "yarn")), "\"yarn\" is not supported; only \"none\" is");
    check(changed(|file| _ = file.u32("llama.expert_count", 8)), "llama.expert_count");
    check(changed(|file| _ = file.u32("llama.rope.dimension_count", 8)), "is not supported; only 16 is, the size of a head");
    check(changed(|file| _ = file.u32("llama.attention.head_count", 3)), "3 heads cannot be divided evenly among 2 key-value heads");
    check(changed(|file| _ = file.u32("llama.attention.head_count", 0)), "is not an integer from 1 to 1024");
    check(
        changed(|file| _ = file.i32s("llama.attention.head_count_kv", &[2, 2])),
        "is an array; only one number for all layers is supported",
    );
    check(changed(|file| _ = file.f32("llama.rope.freq_base", f32::NAN)), "is not a positive number");
    check(changed(|file| _ = file.u32("split.count", 3)), "split over several files");
    check(changed(|file| _ = file.text("tokenizer.ggml.model", "llama")), "only \"gpt2\" (byte-level BPE) is");
    check(changed(|file| _ = file.text("tokenizer.ggml.pre", "klingon")), "\"klingon\" is not supported; supported are gpt-2");
    check(
        changed(|file| _ = file.texts("tokenizer.ggml.merges", &["<|endoftext|> <|fim_prefix|>".into()])),
        "merge 0 is not two tokens that form a third",
    );
    check(changed(|file| _ = file.texts("tokenizer.ggml.merges", &["l i".into()])), "Token `li` out of vocabulary");
    check(changed(|file| _ = file.i32s("tokenizer.ggml.token_type", &[1])), "1 token types for 263 tokens");
    check(changed(|file| _ = file.text("tokenizer.ggml.eos_token_id", "259")), "tokenizer.ggml.eos_token_id at byte");
    check(changed(|file| _ = file.value("tokenizer.ggml.eot_token_id", 10, &(1u64 << 40).to_le_bytes())), "is not a token id");
    check(changed(|file| _ = file.f32("tokenizer.ggml.bos_token_id", 1.0)), "is not a token id");
    check(changed(|file| _ = file.u32("tokenizer.ggml.bos_token_id", 263)), "263 is beyond the 263 tokens");
    check(
        changed(|file| {
            let (tokens, _, kinds) = gguf_writer::vocabulary();
            file.texts("tokenizer.ggml.tokens", &tokens[..262]).i32s("tokenizer.ggml.token_type", &kinds[..262]);
        }),
        "262 tokens where token_embd.weight has 263 rows",
    );
    check(changed(|file| control_token_of(file, 257)), "token 262 has 257 bytes, more than the supported 256 of an added token");
    check(changed(|file| _ = file.tensor("rope_freqs.weight", &[8], 0, vec![0; 32])), "rotary frequencies of a model's own");
    let mut file = small();
    control_token_of(&mut file, 256);
    assert_eq!(load(file.bytes()), Ok(()));
    let mut file = small();
    file.tensors.remove(2);
    file.tensor("blk.0.attn_q.bias", &[64], 0, vec![0; 256]);
    let Err(Error::Weights { missing, unexpected }) = load(file.bytes()) else { panic!("loaded") };
    assert_eq!((missing, unexpected), (vec!["blk.0.attn_norm.weight".into()], vec!["blk.0.attn_q.bias".into()]));
}

#[test]
fn metadata_values_are_typed() {
    let mut file = File::default();
    file.value("i", 1, &[0xff]).value("u", 10, &u64::MAX.to_le_bytes()).value("d", 12, &0.5f64.to_le_bytes()).bool("b", true);
    let bytes = file.bytes();
    let gguf = Gguf::parse("a.gguf", &bytes).expect("a file");
    use souffleur::models::weights::Value;
    assert_eq!(gguf.get("i"), Some(Value::Int(-1)));
    assert_eq!(gguf.get("u"), Some(Value::Int(u64::MAX.into())));
    assert_eq!(gguf.get("d"), Some(Value::Float(0.5)));
    assert_eq!((gguf.get("b"), gguf.get("x")), (Some(Value::Bool(true)), None));
    assert_eq!((gguf.token_id("i"), gguf.token_id("x")), (Ok(None), Ok(None)));
    assert!(["u", "d", "b"].iter().all(|key| gguf.token_id(key).is_err()));
}
