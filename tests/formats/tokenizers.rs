//! Tokenizers built from GGUF metadata.

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

/// The tokens of a text, separated by `|`.
fn tokens_of(pre: &str, text: &str) -> String {
    let tokenizer = tokenizer(pre);
    let ids = tokenizer.encode(text).expect("tokens");
    assert_eq!(tokenizer.decode(&ids).expect("text"), text);
    ids.iter().map(|&id| tokenizer.token_text(id).expect("a token")).collect::<Vec<_>>().join("|")
}

#[test]
fn the_pre_tokenizer_follows_tokenizer_ggml_pre() {
    assert_eq!(tokens_of("qwen2", "a in lo"), "a|Ġin|Ġ|lo");
    // Merges do not cross word boundaries.
    assert_eq!(tokens_of("gpt-2", "in\nin in"), "in|Ċ|in|Ġin");
    assert_eq!(tokens_of("deepseek-coder", "x in"), "x|Ġin");
    assert_eq!(tokens_of("default", "<in>"), "<|in|>");
    for pre in ["gpt-2", "smollm", "starcoder", "qwen2", "llama-bpe", "deepseek-coder", "default"] {
        assert!(!tokens_of(pre, "'S 12345 ½ ß\r\n\t  {x}\u{a0}日本語 🦀").is_empty(), "{pre}");
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
fn bos_follows_add_bos_token_or_the_pre_tokenizer_default() {
    let bos = |pre: &str, add_bos: Option<bool>| {
        let mut file = small();
        file.text("tokenizer.ggml.pre", pre).u32("tokenizer.ggml.bos_token_id", 259);
        if let Some(add_bos) = add_bos {
            file.bool("tokenizer.ggml.add_bos_token", add_bos);
        }
        Tokenizer::open(&Files::of_gguf("a.gguf", file.bytes())).expect("a tokenizer").bos()
    };
    assert_eq!((bos("qwen2", None), bos("qwen2", Some(true)), bos("qwen2", Some(false))), (None, Some(259), None));
    assert_eq!((bos("llama-bpe", None), bos("llama-bpe", Some(false))), (Some(259), None));
}

#[test]
fn an_infill_error_names_the_missing_token_and_the_gguf_file() {
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
    // The vocabulary has the three FIM tokens, and no token for a file.
    let Err(Error::ModelFile { file, field, .. }) = codec.encode(&infill) else { panic!("no error") };
    assert_eq!((file.as_str(), field.as_str()), ("a.gguf", "<|file_sep|>"));
}
