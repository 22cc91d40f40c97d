//! One text in the making: its tokens, how far its cache has them, and when it ends.

use super::codec::TextCodec;
use super::stop::{Piece, Stopper};
use super::{FinishReason, Result};

pub struct Sequence<C> {
    /// The prompt's and the answer's.
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    /// Choices that were submitted but not read: tokens that follow `tokens`.
    pub unread: usize,
    /// Tokens whose keys and values are in the cache, unread ones included.
    pub computed: usize,
    pub cache: C,
    pub stopper: Stopper,
    pub tokens_max: usize,
}

/// What one more token brought.
#[derive(Debug, PartialEq, Eq)]
pub struct Appended {
    pub text: String,
    pub end: Option<FinishReason>,
}

impl<C> Sequence<C> {
    /// Tokens that were not computed yet: the rest of the prompt, or the one to decode.
    pub fn pending(&self) -> usize {
        self.tokens.len() + self.unread - self.computed
    }

    /// The tokens whose keys and values are in the cache and whose ids are known.
    pub fn computed_tokens(&self) -> &[u32] {
        &self.tokens[..self.computed.min(self.tokens.len())]
    }

    /// Whether the unread choice, if there is one, must be the last token.
    pub fn is_full(&self, context_length: usize) -> bool {
        let unread = self.unread > 0;
        unread && (self.completion_tokens() + self.unread >= self.tokens_max || self.tokens.len() + self.unread >= context_length)
    }

    pub fn completion_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Takes a chosen token. `ends` are the tokens that end this text.
    pub fn grow(&mut self, token: u32, language: &TextCodec, ends: &std::collections::BTreeSet<u32>) -> Result<Appended> {
        self.tokens.push(token);
        if ends.contains(&token) {
            return Ok(Appended { text: self.stopper.finish(), end: Some(FinishReason::Eos) });
        }
        let text = match self.stopper.push(&language.tokenizer, token)? {
            Piece::Stop(text) => return Ok(Appended { text, end: Some(FinishReason::Stop) }),
            Piece::Text(text) => text,
        };
        let full = self.completion_tokens() >= self.tokens_max || self.tokens.len() >= language.context();
        if full {
            return Ok(Appended { text: text + &self.stopper.finish(), end: Some(FinishReason::Length) });
        }
        Ok(Appended { text, end: None })
    }
}
