//! Tests of tokenizer.json and tokenizer_config.json.

use super::{ADDED_TOKEN_BYTES_MAX, ADDED_TOKENS_MAX, Tokenizer};
use crate::models::{Error, Result};
use serde_json::{Value, json};

const BOS: u32 = 3;
const EOS: u32 = 4;

fn added(id: u32, content: &str) -> Value {
    json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
}

/// A tokenizer.json with three letters and two control tokens.
fn file() -> Value {
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(BOS, "<|begin|>"), added(EOS, "<|end|>")],
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "vocab": { "a": 0, "b": 1, "c": 2, "<|begin|>": BOS, "<|end|>": EOS }, "merges": [] },
    })
}

fn parse(file: &Value, config: Option<&str>) -> Result<Tokenizer> {
    Tokenizer::parse(file.to_string().as_bytes(), config.map(str::as_bytes))
}

#[test]
fn length_and_number_of_added_tokens_are_limited() {
    let with = |added: Vec<Value>| {
        let mut file = file();
        file["added_tokens"] = added.into();
        parse(&file, None).map(|tokenizer| tokenizer.control_tokens().count())
    };
    let refusal = |added: Vec<Value>| match with(added) {
        Err(Error::ModelFile { file, field, reason }) => format!("{file}: {field}: {reason}"),
        other => panic!("not a ModelFile error: {other:?}"),
    };
    let long = |bytes| added(7, &"x".repeat(bytes));
    assert_eq!(with(vec![long(ADDED_TOKEN_BYTES_MAX)]), Ok(1));
    assert_eq!(
        refusal(vec![long(ADDED_TOKEN_BYTES_MAX + 1)]),
        "tokenizer.json: added_tokens: token 7 has 257 bytes, more than the supported 256 of an added token"
    );
    let many = (0..=ADDED_TOKENS_MAX as u32).map(|id| added(id, &format!("<{id}>"))).collect();
    assert_eq!(refusal(many), "tokenizer.json: added_tokens: 16385 added tokens, more than the supported 16384");
}

#[test]
fn truncation_and_padding_are_disabled() {
    let mut file = file();
    file["truncation"] = json!({ "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0 });
    file["padding"] = json!({ "strategy": { "Fixed": 16 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a" });
    assert_eq!(parse(&file, None).expect("a tokenizer").encode("abcabc"), Ok(vec![0, 1, 2, 0, 1, 2]));
}

#[test]
fn bos_comes_from_the_config_or_else_from_the_post_processor() {
    let begin = json!({ "SpecialToken": { "id": "<|begin|>", "type_id": 0 } });
    let end = json!({ "SpecialToken": { "id": "<|end|>", "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let with = |single: &[&Value]| {
        let special = |id: u32, text: &str| json!({ "id": text, "ids": [id], "tokens": [text] });
        let mut file = file();
        file["post_processor"] = json!({ "type": "Sequence", "processors": [
            { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true },
            { "type": "TemplateProcessing", "single": single, "pair": [],
              "special_tokens": { "<|begin|>": special(BOS, "<|begin|>"), "<|end|>": special(EOS, "<|end|>") } } ] });
        file
    };
    let bos = |file: &Value, config| parse(file, config).expect("a tokenizer").bos();
    let llama = with(&[&begin, &text]);
    assert_eq!(bos(&llama, None), Some(BOS));
    assert_eq!(bos(&llama, Some(r#"{"bos_token": "<|begin|>"}"#)), Some(BOS));
    assert_eq!(bos(&llama, Some(r#"{"add_bos_token": false}"#)), None);
    assert_eq!(bos(&file(), Some(r#"{"add_bos_token": true, "bos_token": "<|end|>"}"#)), Some(EOS));
    assert_eq!(bos(&file(), Some(r#"{"bos_token": "<|begin|>"}"#)), None);
    // A token that the post-processor appends is not BOS.
    assert_eq!(bos(&with(&[&text, &end]), None), None);

    // The post-processor does not apply to encoded text.
    let twice = parse(&with(&[&begin, &text, &text]), None).expect("a tokenizer");
    assert_eq!(twice.encode("abc"), Ok(vec![0, 1, 2]));
    let mut unknown = llama;
    unknown["post_processor"]["processors"][1]["special_tokens"] = json!({});
    assert!(matches!(parse(&unknown, None), Err(Error::ModelFile { field, .. }) if field == "post_processor"));
}
