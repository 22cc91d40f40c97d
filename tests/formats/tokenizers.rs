//! A tokenizer that is built from metadata.

use crate::refusals::small;
use souffleur::models::codec::TextCodec;
use souffleur::models::network::DecoderSpec;
use souffleur::models::tokenizer::Tokenizer;
use souffleur::models::weights::Files;
use souffleur::models::{Error, Prompt};

fn tokenizer(pre: &str) -> Tokenizer {
    let mut file = small();
    file.text("tokenizer.ggml.pre", pre);
    Tokenizer::open(&Files::of_gguf("a.gguf", file.bytes())).expect("a tokenizer")
}

/// The tokens of a text, a line between them.
fn pieces(pre: &str, text: &str) -> String {
    let tokenizer = tokenizer(pre);
    let ids = tokenizer.encode(text).expect("tokens");
    assert_eq!(tokenizer.decode(&ids).expect("text"), text);
    ids.iter().map(|&id| tokenizer.token_text(id).expect("a token")).collect::<Vec<_>>().join("|")
}

#[test]
fn words_are_cut_as_the_name_says() {
    assert_eq!(pieces("qwen2", "a in lo"), "a|Ġin|Ġ|lo");
    // Only what stays in one word merges.
    assert_eq!(pieces("gpt-2", "in\nin in"), "in|Ċ|in|Ġin");
    assert_eq!(pieces("deepseek-coder", "x in"), "x|Ġin");
    assert_eq!(pieces("default", "<in>"), "<|in|>");
    for pre in ["gpt-2", "smollm", "starcoder", "qwen2", "llama-bpe", "deepseek-coder", "default"] {
        assert!(!pieces(pre, "'S 12345 ½ ß\r\n\t  {x}\u{a0}日本語 🦀").is_empty(), "{pre}");
    }
}

#[test]
fn text_never_becomes_a_control_token() {
    let tokenizer = tokenizer("qwen2");
    let end = tokenizer.control("<|endoftext|>").expect("a control token");
    assert_eq!(end, 259);
    assert!(tokenizer.encode("<|endoftext|>").expect("tokens").iter().all(|&id| !tokenizer.is_control(id)));
    assert_eq!(tokenizer.control_tokens().count(), 4);
}

#[test]
fn a_text_begins_as_the_file_says() {
    let bos = |pre: &str, says: Option<bool>| {
        let mut file = small();
        file.text("tokenizer.ggml.pre", pre).u32("tokenizer.ggml.bos_token_id", 259);
        if let Some(says) = says {
            file.bool("tokenizer.ggml.add_bos_token", says);
        }
        Tokenizer::open(&Files::of_gguf("a.gguf", file.bytes())).expect("a tokenizer").bos()
    };
    assert_eq!((bos("qwen2", None), bos("qwen2", Some(true)), bos("qwen2", Some(false))), (None, Some(259), None));
    assert_eq!((bos("llama-bpe", None), bos("llama-bpe", Some(false))), (Some(259), None));
}

#[test]
fn what_a_prompt_lacks_is_looked_for_in_the_file_itself() {
    let files = Files::of_gguf("a.gguf", small().bytes());
    let codec = TextCodec::open(&files, &DecoderSpec::parse(&files).expect("a network")).expect("a codec");
    let infill = Prompt::Infill {
        prefix: "in".into(),
        suffix: String::new(),
        path: Some("a.rs".into()),
        repository: None,
        files: Vec::new(),
        order: None,
    };
    // The vocabulary has the three markers of a hole, and none of a file.
    let Err(Error::ModelFile { file, field, .. }) = codec.encode(&infill) else { panic!("it has no such marker") };
    assert_eq!((file.as_str(), field.as_str()), ("a.gguf", "<|file_sep|>"));
}
