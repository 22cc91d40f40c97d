//! The text side of one model: its tokenizer, its prompt format and the token ids that end a completion.

use super::family::{self, Family};
use super::network::DecoderSpec;
use super::prompt::{self, Part};
use super::special_tokens;
use super::tokenizer::Tokenizer;
use super::weights::Files;
use super::{Error, Prompt, Result};
use std::collections::BTreeSet;

/// Encodes prompts for one model and has the token ids that end its completions.
pub struct TextCodec {
    pub tokenizer: Tokenizer,
    pub family: &'static Family,
    /// The token ids that end a fill-in-the-middle completion: the EOS ids and the markers that may follow the middle.
    fim_eos_ids: BTreeSet<u32>,
    context_length: usize,
    vocab_size: usize,
}

impl TextCodec {
    /// The EOS ids are the union of what config.json, generation_config.json or the GGUF metadata, the tokenizer and
    /// the family declare, because files often leave one out.
    ///
    /// # Errors
    /// `ModelFile` if the tokenizer or a file with EOS ids is invalid.
    pub fn open(files: &Files, spec: &DecoderSpec) -> Result<Self> {
        let mut tokenizer = Tokenizer::open(files)?;
        let family = family::detect(&files.name, &spec.architecture, &tokenizer);
        for id in special_tokens::eos_ids(files)? {
            tokenizer.add_eos_id(id);
        }
        for token in family.eos {
            tokenizer.add_eos_token(token);
        }
        let markers = family.fim_eos.iter().filter_map(|token| tokenizer.control(token));
        let fim_eos_ids = markers.chain(tokenizer.eos_ids().iter().copied()).collect();
        Ok(Self { tokenizer, family, fim_eos_ids, context_length: spec.context_length, vocab_size: spec.vocab_size })
    }

    /// Renders and tokenizes a prompt.
    ///
    /// # Errors
    /// The errors of `render` and `encode_parts`.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.encode_parts(&self.render(prompt)?)
    }

    /// The text and control tokens of a prompt, in order.
    ///
    /// # Errors
    /// `Unsupported` for an infill prompt if the model has no fill-in-the-middle markers.
    pub fn render<'a>(&self, prompt: &'a Prompt) -> Result<Vec<Part<'a>>> {
        prompt::render(prompt, self.family)
    }

    /// The token ids of a rendered prompt: at least one, and fewer than the context length.
    ///
    /// # Errors
    /// `ContextOverflow` if no position is left for a completion; `ModelFile` if the vocabulary lacks
    /// a marker or the tokenizer has an id that the network lacks; `Parameter` if the prompt is empty and the
    /// model has no EOS token.
    pub fn encode_parts(&self, parts: &[Part<'_>]) -> Result<Vec<u32>> {
        let mut tokens = prompt::encode(parts, &self.tokenizer)?;
        if tokens.is_empty() {
            // An empty prompt starts a new document. In training, a document follows the EOS token of another.
            let start = self.tokenizer.eos_ids().first().copied();
            tokens.push(start.ok_or_else(|| Error::Parameter { name: "prompt".into(), reason: "is empty".into() })?);
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.vocab_size) {
            let reason = format!("token {id} is beyond the network's vocabulary of {}", self.vocab_size);
            return Err(self.tokenizer.error("vocab", reason));
        }
        if tokens.len() >= self.context_length {
            return Err(Error::ContextOverflow { needed: tokens.len() as u64, limit: self.context_length as u64 });
        }
        Ok(tokens)
    }

    /// The token ids that end a completion of this prompt.
    pub fn eos_ids(&self, prompt: &Prompt) -> &BTreeSet<u32> {
        match prompt {
            Prompt::Infill { .. } => &self.fim_eos_ids,
            Prompt::Text(_) | Prompt::Chat { .. } => self.tokenizer.eos_ids(),
        }
    }

    /// Tokens of prompt and completion together.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Rows of the embedding table; the tokenizer may have fewer tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}
