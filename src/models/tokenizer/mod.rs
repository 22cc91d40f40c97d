//! Text to tokens and back. Text can never become a control token: those come from the prompt's structure only.

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
/// Tokens that are searched in texts or guarded against: the largest vocabularies have some six thousand.
const ADDED_MAX: usize = 1 << 14;
/// Bytes of one of them: the longest known have some forty. What searches them takes memory many times their length.
const ADDED_BYTES_MAX: usize = 256;

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Where it came from, for errors.
    file: String,
    /// By text: what structures a prompt or ends a text.
    control: BTreeMap<String, u32>,
    control_ids: BTreeSet<u32>,
    eos_ids: BTreeSet<u32>,
    /// Put before every prompt when the model's files say so.
    bos: Option<u32>,
}

/// Where one sequence's text stands between two tokens.
#[derive(Default)]
pub struct DetokenizerState {
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}

impl Tokenizer {
    pub fn open(files: &Files) -> Result<Self> {
        match &files.format {
            ModelFormat::HuggingFace(hf) => Self::parse(&hf.tokenizer, hf.tokenizer_config.as_deref()),
            ModelFormat::Gguf => Self::of_gguf(&files.gguf()?),
        }
    }

    /// `config` is `tokenizer_config.json`, for its beginning and end of text.
    pub fn parse(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self> {
        let fail = |reason: String| Error::file(TOKENIZER_JSON, "json", reason);
        let Head { added_tokens } = serde_json::from_slice(tokenizer).map_err(|e| fail(e.to_string()))?;
        check_added(added_tokens.iter().map(|token| (token.id, token.content.len())))
            .map_err(|reason| Error::file(TOKENIZER_JSON, "added_tokens", reason))?;
        // The crate panics on some files that it should refuse.
        let parsed = catch_unwind(|| tokenizers::Tokenizer::from_bytes(tokenizer)).map_err(|panic| fail(super::panic_message(&*panic)))?;
        let mut inner = parsed.map_err(|e| fail(e.to_string()))?;
        // Both would change a prompt without a word.
        inner.with_truncation(None).map_err(|e| fail(e.to_string()))?;
        inner.with_padding(None);

        // Some files list their markers as ordinary added tokens, which any text could then spell.
        let added = inner.get_added_tokens_decoder();
        let is_marker = |token: &AddedToken| token.special || (token.content.starts_with('<') && token.content.ends_with('>'));
        let control: BTreeMap<_, _> =
            added.iter().filter(|(_, token)| is_marker(token)).map(|(id, token)| (token.content.clone(), *id)).collect();
        let unmarked: Vec<_> = added
            .values()
            .filter(|token| is_marker(token) && !token.special)
            .map(|token| AddedToken { special: true, ..token.clone() })
            .collect();
        inner.add_special_tokens(unmarked).map_err(|e| fail(e.to_string()))?;
        inner.set_encode_special_tokens(true);
        let control_ids = control.values().copied().collect();
        let mut tokenizer = Self { inner, file: TOKENIZER_JSON.into(), control, control_ids, eos_ids: BTreeSet::new(), bos: None };
        tokenizer.bos = tokenizer.processed_bos()?;
        // It has said all it has to: a text's tokens are its own.
        tokenizer.inner.with_post_processor(None::<PostProcessorWrapper>);
        if let Some(config) = config {
            tokenizer.read_config(config)?;
        }
        Ok(tokenizer)
    }

    fn read_config(&mut self, config: &[u8]) -> Result<()> {
        let value: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(config).map_err(|e| Error::file("tokenizer_config.json", "json", e))?;
        // A token is its text, or an object that holds it.
        let token = |key: &str| value.get(key).and_then(|token| token.get("content").unwrap_or(token).as_str());
        if let Some(eos) = token("eos_token") {
            self.add_eos_token(eos);
        }
        if let Some(add_bos) = value.get("add_bos_token").and_then(serde_json::Value::as_bool) {
            self.bos = token("bos_token").filter(|_| add_bos).and_then(|bos| self.control(bos));
        }
        Ok(())
    }

    /// The control token that the post-processor puts before a text: Llama 3's files say it nowhere else.
    fn processed_bos(&self) -> Result<Option<u32>> {
        // The crate panics on a template with a token that it does not define.
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast("a", true)))
            .map_err(|panic| self.error("post_processor", super::panic_message(&*panic)))?
            .map_err(|e| self.error("post_processor", e))?;
        let first = encoding.get_ids().first().zip(encoding.get_special_tokens_mask().first());
        Ok(first.and_then(|(&id, &added)| (added == 1 && self.is_control(id)).then_some(id)))
    }

    /// From now on this token ends a text. A token that the vocabulary lacks is skipped.
    pub fn add_eos_token(&mut self, token: &str) -> bool {
        self.control(token).is_some_and(|id| self.eos_ids.insert(id))
    }

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

    /// The tokens of a text; none of them is a control token, whatever the text spells.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.error("encode", e))?;
        let ids = encoding.get_ids().to_vec();
        match ids.iter().find(|id| self.is_control(**id)) {
            Some(id) => Err(Error::Unsupported(format!("the tokenizer makes text into control token {id}"))),
            None => Ok(ids),
        }
    }

    /// The text of tokens, control tokens written out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|id| self.inner.id_to_token(**id).is_none()) {
            return Err(Error::Parameter { name: "tokens".into(), reason: format!("{id} is not a token of this model") });
        }
        self.inner.decode(ids, false).map_err(|e| self.error("decode", e))
    }

    /// How a token is written, if there is such a token.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The text that `token` completes, `None` while a character is unfinished. Control tokens have no text.
    pub fn decode_step(&self, state: &mut DetokenizerState, token: u32) -> Result<Option<String>> {
        let DetokenizerState { ids, prefix, prefix_index } = state;
        step_decode_stream(&self.inner, vec![token], true, ids, prefix, prefix_index).map_err(|e| self.error("decoder", e))
    }

    /// What is wrong with the file that this came from.
    pub(super) fn error(&self, field: &str, reason: impl ToString) -> Error {
        Error::file(&*self.file, field, reason)
    }
}

/// What of tokenizer.json is looked at before the crate reads it whole.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    added_tokens: Vec<Added<'a>>,
}

#[derive(Deserialize)]
struct Added<'a> {
    id: u32,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

/// Whether tokens of these ids and lengths may be searched in texts.
fn check_added(tokens: impl Iterator<Item = (u32, usize)>) -> std::result::Result<(), String> {
    let mut count = 0;
    for (id, bytes) in tokens {
        count += 1;
        if bytes > ADDED_BYTES_MAX {
            return Err(format!("token {id} has {bytes} bytes, more than the {ADDED_BYTES_MAX} that are supported of a control token"));
        }
    }
    if count > ADDED_MAX { Err(format!("{count} control tokens, more than the {ADDED_MAX} that are supported")) } else { Ok(()) }
}
