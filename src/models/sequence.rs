//! One sequence that is being generated: its tokens, its KV cache and the conditions that end it.

use super::codec::TextCodec;
use super::detokenizer::{Detokenizer, TextDelta};
use super::{FinishReason, Result};
use std::collections::BTreeSet;

pub struct Sequence<C> {
    /// Prompt and completion.
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    /// Tokens that follow `tokens`: the backend was asked to sample them, but their ids were not read back yet.
    pub unread: usize,
    /// Tokens whose keys and values are in the cache, unread ones included.
    pub computed: usize,
    pub cache: C,
    pub detokenizer: Detokenizer,
    /// Limit of the completion's length, in tokens.
    pub tokens_max: usize,
}

/// The result of appending one token.
#[derive(Debug, PartialEq, Eq)]
pub struct Appended {
    /// The text that the token adds to the completion; may be empty.
    pub text: String,
    /// Why the sequence ended, if it did.
    pub end: Option<FinishReason>,
}

impl<C> Sequence<C> {
    /// Tokens whose keys and values are not in the cache yet: the rest of the prompt, or the token to decode.
    pub fn pending(&self) -> usize {
        self.tokens.len() + self.unread - self.computed
    }

    /// The tokens whose keys and values are in the cache and whose ids are known.
    pub fn computed_tokens(&self) -> &[u32] {
        &self.tokens[..self.computed.min(self.tokens.len())]
    }

    /// Whether an unread token exists and must be the last one, by the limits of the completion and the context.
    pub fn is_full(&self, context_length: usize) -> bool {
        self.unread > 0 && (self.completion_tokens() + self.unread >= self.tokens_max || self.tokens.len() + self.unread >= context_length)
    }

    pub fn completion_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Appends a sampled token. A token of `eos_ids` ends the sequence.
    ///
    /// # Errors
    /// `ModelFile` if the tokenizer's decoder fails.
    pub fn push_token(&mut self, token: u32, codec: &TextCodec, eos_ids: &BTreeSet<u32>) -> Result<Appended> {
        self.tokens.push(token);
        if eos_ids.contains(&token) {
            return Ok(Appended { text: self.detokenizer.finish(), end: Some(FinishReason::Eos) });
        }
        let text = match self.detokenizer.push(&codec.tokenizer, token)? {
            TextDelta::Stop(text) => return Ok(Appended { text, end: Some(FinishReason::Stop) }),
            TextDelta::Text(text) => text,
        };
        let full = self.completion_tokens() >= self.tokens_max || self.tokens.len() >= codec.context_length();
        if full {
            return Ok(Appended { text: text + &self.detokenizer.finish(), end: Some(FinishReason::Length) });
        }
        Ok(Appended { text, end: None })
    }
}
