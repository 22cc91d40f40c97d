//! Tokenization. Text is never encoded as a control token: only the structure of a prompt adds control tokens.

mod gguf;
mod pre_tokenizer;
#[cfg(test)]
mod tests;

use super::weights::{Files, ModelFormat};
use super::{Error, Result};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{AddedToken, PostProcessorWrapper, step_decode_stream};

const TOKENIZER_JSON: &str = "tokenizer.json";
/// Limit of added tokens: the largest known vocabularies have some six thousand.
const ADDED_TOKENS_MAX: usize = 1 << 14;
/// Limit of an added token's bytes: the longest known have some forty. The automaton that matches them takes many times their
/// length in memory.
const ADDED_TOKEN_BYTES_MAX: usize = 256;

/// A byte-level BPE tokenizer and its special tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The file it was read from, for errors.
    file: String,
    /// Control tokens by text.
    control: BTreeMap<String, u32>,
    control_ids: BTreeSet<u32>,
    eos_ids: BTreeSet<u32>,
    /// The BOS token, if the model's files say that prompts begin with it.
    bos: Option<u32>,
}

/// The state of one sequence's incremental decoding.
#[derive(Default)]
pub struct DetokenizerState {
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}

impl Tokenizer {
    /// # Errors
    /// `ModelFile` if the tokenizer is invalid or not supported.
    pub fn open(files: &Files) -> Result<Self> {
        match &files.format {
            ModelFormat::HuggingFace(hf) => Self::parse(&hf.tokenizer, hf.tokenizer_config.as_deref()),
            ModelFormat::Gguf => Self::of_gguf(&files.gguf()?),
        }
    }

    /// Parses tokenizer.json. `config` is tokenizer_config.json, read for its BOS and EOS tokens.
    ///
    /// # Errors
    /// `ModelFile` if one of them is invalid.
    pub fn parse(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self> {
        let fail = |reason: String| Error::file(TOKENIZER_JSON, "json", reason);
        let AddedTokens { added_tokens } = serde_json::from_slice(tokenizer).map_err(|e| fail(e.to_string()))?;
        check_added_tokens(added_tokens.iter().map(|token| (token.id, token.content.len())))
            .map_err(|reason| Error::file(TOKENIZER_JSON, "added_tokens", reason))?;
        // The crate panics on some invalid files.
        let parsed = catch_unwind(|| tokenizers::Tokenizer::from_bytes(tokenizer)).map_err(|panic| fail(super::panic_message(&*panic)))?;
        let mut inner = parsed.map_err(|e| fail(e.to_string()))?;
        // Truncation and padding would silently change a prompt.
        inner.with_truncation(None).map_err(|e| fail(e.to_string()))?;
        inner.with_padding(None);

        // Some files declare their markers as added tokens that are not special; these would match in any text.
        let added = inner.get_added_tokens_decoder();
        let is_marker = |token: &AddedToken| token.special || (token.content.starts_with('<') && token.content.ends_with('>'));
        let control: BTreeMap<_, _> =
            added.iter().filter(|(_, token)| is_marker(token)).map(|(id, token)| (token.content.clone(), *id)).collect();
        let undeclared: Vec<_> = added
            .values()
            .filter(|token| is_marker(token) && !token.special)
            .map(|token| AddedToken { special: true, ..token.clone() })
            .collect();
        inner.add_special_tokens(undeclared).map_err(|e| fail(e.to_string()))?;
        inner.set_encode_special_tokens(true);
        let control_ids = control.values().copied().collect();
        let mut tokenizer = Self { inner, file: TOKENIZER_JSON.into(), control, control_ids, eos_ids: BTreeSet::new(), bos: None };
        tokenizer.bos = tokenizer.post_processor_bos()?;
        // Prompts are assembled here, so the post-processor must not add tokens to each text part.
        tokenizer.inner.with_post_processor(None::<PostProcessorWrapper>);
        if let Some(config) = config {
            tokenizer.read_config(config)?;
        }
        Ok(tokenizer)
    }

    fn read_config(&mut self, config: &[u8]) -> Result<()> {
        let value: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(config).map_err(|e| Error::file("tokenizer_config.json", "json", e))?;
        // A token is a string, or an object whose `content` is the string.
        let token = |key: &str| value.get(key).and_then(|token| token.get("content").unwrap_or(token).as_str());
        if let Some(eos) = token("eos_token") {
            self.add_eos_token(eos);
        }
        if let Some(add_bos) = value.get("add_bos_token").and_then(serde_json::Value::as_bool) {
            self.bos = token("bos_token").filter(|_| add_bos).and_then(|bos| self.control(bos));
        }
        Ok(())
    }

    /// The control token that the post-processor puts before a text. Llama 3's files declare BOS only there.
    fn post_processor_bos(&self) -> Result<Option<u32>> {
        // The crate panics on a template with an undefined token.
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast("a", true)))
            .map_err(|panic| self.error("post_processor", super::panic_message(&*panic)))?
            .map_err(|e| self.error("post_processor", e))?;
        let first = encoding.get_ids().first().zip(encoding.get_special_tokens_mask().first());
        Ok(first.and_then(|(&id, &added)| (added == 1 && self.is_control(id)).then_some(id)))
    }

    /// Adds an EOS token. Returns false for a token that is not a control token or was added before.
    pub fn add_eos_token(&mut self, token: &str) -> bool {
        self.control(token).is_some_and(|id| self.eos_ids.insert(id))
    }

    /// Adds an EOS id. Returns false for an id that is not in the vocabulary or was added before.
    pub fn add_eos_id(&mut self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some() && self.eos_ids.insert(id)
    }

    pub fn eos_ids(&self) -> &BTreeSet<u32> {
        &self.eos_ids
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id of a control token by its text.
    pub fn control(&self, token: &str) -> Option<u32> {
        self.control.get(token).copied()
    }

    pub fn is_control(&self, id: u32) -> bool {
        self.control_ids.contains(&id)
    }

    pub fn control_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.control.iter().map(|(token, id)| (token.as_str(), *id))
    }

    /// Encodes a text. No token is a control token, even where the text spells one.
    ///
    /// # Errors
    /// `ModelFile` if the tokenizer fails; `Unsupported` if it yields a control token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.error("encode", e))?;
        let ids = encoding.get_ids().to_vec();
        match ids.iter().find(|id| self.is_control(**id)) {
            Some(id) => Err(Error::Unsupported(format!("the tokenizer encodes text as control token {id}"))),
            None => Ok(ids),
        }
    }

    /// Decodes tokens, control tokens included.
    ///
    /// # Errors
    /// `Parameter` for an id that is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|id| self.inner.id_to_token(**id).is_none()) {
            return Err(Error::Parameter { name: "tokens".into(), reason: format!("{id} is not a token of this model") });
        }
        self.inner.decode(ids, false).map_err(|e| self.error("decode", e))
    }

    /// The text of a token in the vocabulary; `None` for an unknown id.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Decodes the next token of a sequence. Returns the text that it completes, `None` while a character is incomplete. Control
    /// tokens have no text.
    ///
    /// # Errors
    /// `ModelFile` if the decoder fails.
    pub fn decode_step(&self, state: &mut DetokenizerState, token: u32) -> Result<Option<String>> {
        let DetokenizerState { ids, prefix, prefix_index } = state;
        step_decode_stream(&self.inner, vec![token], true, ids, prefix, prefix_index).map_err(|e| self.error("decoder", e))
    }

    /// An error about the file that this tokenizer was read from.
    pub(super) fn error(&self, field: &str, reason: impl ToString) -> Error {
        Error::file(&*self.file, field, reason)
    }
}

/// The part of tokenizer.json that is checked before the crate parses the file.
#[derive(Deserialize)]
struct AddedTokens<'a> {
    #[serde(borrow, default)]
    added_tokens: Vec<AddedTokenEntry<'a>>,
}

#[derive(Deserialize)]
struct AddedTokenEntry<'a> {
    id: u32,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

/// Checks the number of added tokens and the length of each, given as `(id, bytes)`.
fn check_added_tokens(tokens: impl Iterator<Item = (u32, usize)>) -> std::result::Result<(), String> {
    let mut count = 0;
    for (id, bytes) in tokens {
        count += 1;
        if bytes > ADDED_TOKEN_BYTES_MAX {
            return Err(format!("token {id} has {bytes} bytes, more than the supported {ADDED_TOKEN_BYTES_MAX} of an added token"));
        }
    }
    if count > ADDED_TOKENS_MAX { Err(format!("{count} added tokens, more than the supported {ADDED_TOKENS_MAX}")) } else { Ok(()) }
}
