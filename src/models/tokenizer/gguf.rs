//! A byte-level BPE tokenizer from GGUF's metadata: vocabulary, merges and token types.

use super::{Tokenizer, check_added_tokens, pre_tokenizer};
use crate::models::Result;
use crate::models::weights::Gguf;
use std::collections::{BTreeMap, BTreeSet};
use tokenizers::AddedToken;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const BOS: &str = "tokenizer.ggml.bos_token_id";
/// Token types of llama.cpp (`enum llama_token_type`).
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

impl Tokenizer {
    pub(super) fn of_gguf(gguf: &Gguf<'_>) -> Result<Self> {
        match gguf.string(MODEL)? {
            "gpt2" => {}
            other => return Err(gguf.error(MODEL, format!("{other:?} is not supported; only \"gpt2\" (byte-level BPE) is"))),
        }
        let name = gguf.string_opt(PRE)?.unwrap_or("default");
        let pre_tokenizer = pre_tokenizer::by_name(name)
            .ok_or_else(|| gguf.error(PRE, format!("{name:?} is not supported; supported are {}", pre_tokenizer::names())))?;

        let tokens = tokens(gguf)?;
        let (control, ordinary) = added_tokens(gguf, &tokens)?;
        let bpe = BPE::builder().vocab_and_merges(vocab(gguf, &tokens)?, merges(gguf, &tokens)?).ignore_merges(pre_tokenizer.ignore_merges);
        let fail = |e: tokenizers::Error| gguf.error(MERGES, e);
        let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(fail)?);
        inner.with_pre_tokenizer(Some(pre_tokenizer.build().map_err(fail)?)).with_decoder(Some(ByteLevel::default()));
        if pre_tokenizer.nfc {
            inner.with_normalizer(Some(NFC)).map_err(fail)?;
        }
        let added = |special| move |text: &str| AddedToken::from(text, special).normalized(false);
        inner.add_special_tokens(control.keys().map(|text| added(true)(text))).map_err(fail)?;
        inner.add_tokens(ordinary.into_iter().map(|(_, text)| added(false)(text))).map_err(fail)?;
        inner.set_encode_special_tokens(true);

        let control_ids = control.values().copied().collect();
        let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(pre_tokenizer.add_bos);
        let bos = gguf.token_id(BOS)?;
        if let Some(id) = bos.filter(|&id| id as usize >= tokens.len()) {
            return Err(gguf.error(BOS, format!("{id} is beyond the {} tokens", tokens.len())));
        }
        let bos = bos.filter(|_| add_bos);
        Ok(Self { inner, file: gguf.file.into(), control, control_ids, eos_ids: BTreeSet::new(), bos })
    }
}

fn tokens<'a>(gguf: &Gguf<'a>) -> Result<Vec<&'a str>> {
    let array = gguf.array(TOKENS)?;
    let text = |(id, text): (usize, Option<&'a str>)| text.ok_or_else(|| gguf.error(TOKENS, format!("token {id} is not UTF-8")));
    let tokens: Vec<_> = array.strings().enumerate().map(text).collect::<Result<_>>()?;
    if tokens.is_empty() { Err(gguf.error(TOKENS, "is empty or not an array of strings")) } else { Ok(tokens) }
}

fn vocab(gguf: &Gguf<'_>, tokens: &[&str]) -> Result<Vocab> {
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (id, token) in (0..).zip(tokens) {
        if let Some(other) = vocab.insert((*token).to_owned(), id) {
            return Err(gguf.error(TOKENS, format!("tokens {other} and {id} are both {token:?}")));
        }
    }
    Ok(vocab)
}

/// Each merge is two tokens, separated by a space.
fn merges(gguf: &Gguf<'_>, tokens: &[&str]) -> Result<Merges> {
    let array = gguf.array(MERGES)?;
    let longest = tokens.iter().map(|token| token.len()).max().unwrap_or(0);
    let merge = |(index, text): (usize, Option<&str>)| {
        let (left, right) = text.and_then(|text| text.split_once(' ')).unwrap_or_default();
        // The crate relies on merges that are no longer than the longest token.
        if left.is_empty() || right.is_empty() || left.len() + right.len() > longest {
            return Err(gguf.error(MERGES, format!("merge {index} is not two tokens that form a third")));
        }
        Ok((left.to_owned(), right.to_owned()))
    };
    array.strings().enumerate().map(merge).collect()
}

/// Control tokens by text, and added tokens that match in ordinary text. As in tokenizer.json, user-defined markers count as
/// control tokens.
#[allow(clippy::type_complexity, reason = "two sets that are read from one array")]
fn added_tokens<'a>(gguf: &Gguf<'_>, tokens: &[&'a str]) -> Result<(BTreeMap<String, u32>, Vec<(u32, &'a str)>)> {
    let token_types = gguf.array(TOKEN_TYPES)?;
    if token_types.len() != tokens.len() {
        return Err(gguf.error(TOKEN_TYPES, format!("{} token types for {} tokens", token_types.len(), tokens.len())));
    }
    let (mut control, mut ordinary) = (BTreeMap::new(), Vec::new());
    for ((id, token), token_type) in (0..).zip(tokens).zip(token_types.ints()) {
        let is_marker = token.starts_with('<') && token.ends_with('>');
        match token_type {
            Some(CONTROL) => _ = control.insert((*token).to_owned(), id),
            Some(USER_DEFINED) if is_marker => _ = control.insert((*token).to_owned(), id),
            Some(USER_DEFINED) => ordinary.push((id, *token)),
            Some(_) => {}
            None => return Err(gguf.error(TOKEN_TYPES, format!("the type of token {id} is not an integer"))),
        }
    }
    let sizes = control.iter().map(|(text, id)| (*id, text.len())).chain(ordinary.iter().map(|(id, text)| (*id, text.len())));
    check_added_tokens(sizes).map_err(|reason| gguf.error(TOKEN_TYPES, reason))?;
    Ok((control, ordinary))
}
