//! How one model reads and writes: its tokenizer, its family, what ends its texts and how much it can read.

use super::family::{self, Family};
use super::network::{DecoderSpec, eos_ids};
use super::prompt::{self, Part};
use super::tokenizer::Tokenizer;
use super::weights::{Files, HfFiles, ModelFormat};
use super::{Error, Prompt, Result};
use std::collections::BTreeSet;

pub struct TextCodec {
    pub tokenizer: Tokenizer,
    pub family: &'static Family,
    /// End an infill: what ends every text, and the markers of what comes after a middle.
    infill_ends: BTreeSet<u32>,
    context: usize,
    vocabulary: usize,
}

impl TextCodec {
    pub fn open(files: &Files, spec: &DecoderSpec) -> Result<Self> {
        let mut tokenizer = Tokenizer::open(files)?;
        let family = family::detect(&files.name, &spec.architecture, &tokenizer);
        // The union of what all say: a model's files often forget one of its ends.
        for &id in spec.eos.iter().chain(&generation_eos(files)?) {
            tokenizer.add_eos_id(id);
        }
        for token in family.eos {
            tokenizer.add_eos_token(token);
        }
        let markers = family.infill_eos.iter().filter_map(|token| tokenizer.control(token));
        let infill_ends = markers.chain(tokenizer.eos().iter().copied()).collect();
        Ok(Self { tokenizer, family, infill_ends, context: spec.context_length, vocabulary: spec.vocab_size })
    }

    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.tokens(&self.render(prompt)?)
    }

    /// A prompt's texts and control tokens.
    pub fn render<'a>(&self, prompt: &'a Prompt) -> Result<Vec<Part<'a>>> {
        prompt::render(prompt, self.family)
    }

    /// The tokens of a prompt's parts, at least one, with room for an answer behind them.
    pub fn tokens(&self, parts: &[Part<'_>]) -> Result<Vec<u32>> {
        let mut tokens = prompt::encode(parts, &self.tokenizer)?;
        if tokens.is_empty() {
            // Nothing said is the start of a text, and in training that stood behind the end of another.
            let start = self.tokenizer.eos().first().copied();
            tokens.push(start.ok_or_else(|| Error::Parameter { name: "prompt".into(), reason: "is empty".into() })?);
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.vocabulary) {
            let reason = format!("token {id} is beyond the network's vocabulary of {}", self.vocabulary);
            return Err(self.tokenizer.error("vocab", reason));
        }
        if tokens.len() >= self.context {
            return Err(Error::ContextOverflow { needed: tokens.len() as u64, limit: self.context as u64 });
        }
        Ok(tokens)
    }

    /// The tokens that end an answer to this prompt.
    pub fn ends(&self, prompt: &Prompt) -> &BTreeSet<u32> {
        match prompt {
            Prompt::Infill { .. } => &self.infill_ends,
            Prompt::Text(_) | Prompt::Chat { .. } => self.tokenizer.eos(),
        }
    }

    pub fn context(&self) -> usize {
        self.context
    }

    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }
}

fn generation_eos(files: &Files) -> Result<Vec<u32>> {
    let ModelFormat::HuggingFace(HfFiles { generation_config: Some(bytes), .. }) = &files.format else { return Ok(Vec::new()) };
    let config = serde_json::from_slice(bytes).map_err(|e| Error::file("generation_config.json", "json", e))?;
    Ok(eos_ids(&config))
}
