//! How a text is cut into words before its bytes are merged, by the name that GGUF gives it.
//!
//! The expressions are those of the models' own tokenizers, and of llama.cpp for `default`, where there is none.

use tokenizers::SplitDelimiterBehavior::Isolated;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, Result};

/// How one kind of vocabulary reads.
pub(super) struct Reading {
    names: &'static [&'static str],
    /// Composed characters and what they are composed of are one (Unicode's NFC).
    pub(super) composes: bool,
    /// A word that is a token is that token, whatever its merges say.
    pub(super) words_first: bool,
    /// Begins with the beginning-of-text token where the file doesn't say.
    pub(super) begins: bool,
    /// Each cuts what the ones before it left.
    cuts: &'static [Cut],
}

enum Cut {
    By(&'static str),
    /// Every digit of any script alone.
    Digits,
    Gpt2,
}
use Cut::{By, Gpt2};

const READINGS: &[Reading] = &[
    Reading { names: &["gpt-2", "gpt2", "phi-2", "mpt", "olmo", "mellum"], cuts: &[Gpt2], ..PLAIN },
    Reading { names: &["smollm", "starcoder", "refact", "command-r", "codeshell"], cuts: &[Cut::Digits, Gpt2], ..PLAIN },
    Reading {
        names: &["qwen2", "deepseek-r1-qwen"],
        composes: true,
        cuts: &[By(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")],
        ..PLAIN
    },
    Reading {
        names: &["llama-bpe", "llama3", "llama-v3"],
        words_first: true,
        begins: true,
        cuts: &[By(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")],
        ..PLAIN
    },
    Reading {
        names: &["deepseek-coder"],
        cuts: &[By(r"[\r\n]"), By(r"\s?\p{L}+"), By(r"\s?\p{P}+"), By("[一-龥ࠀ-一가-퟿]+"), Cut::Digits],
        ..PLAIN
    },
    Reading {
        names: &["default"],
        cuts: &[
            By(r"[\p{P}\$\+<=>\^~\|]+"),
            By(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
            By(r"\p{N}+"),
            By("[0-9][0-9][0-9]"),
        ],
        ..PLAIN
    },
];

const PLAIN: Reading = Reading { names: &[], composes: false, words_first: false, begins: false, cuts: &[] };

/// The reading of that name.
pub(super) fn named(name: &str) -> Option<&'static Reading> {
    READINGS.iter().find(|reading| reading.names.contains(&name))
}

/// All names, for a message.
pub(super) fn names() -> String {
    READINGS.iter().flat_map(|reading| reading.names).copied().collect::<Vec<_>>().join(", ")
}

impl Reading {
    /// The cuts, then bytes as the characters that byte-level vocabularies write them with.
    pub(super) fn splitter(&self) -> Result<Sequence> {
        let bytes = |cut| PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, cut));
        let mut all = Vec::new();
        for cut in self.cuts {
            all.push(match cut {
                By(pattern) => PreTokenizerWrapper::Split(Split::new(SplitPattern::Regex((*pattern).into()), Isolated, false)?),
                Cut::Digits => PreTokenizerWrapper::Digits(Digits::new(true)),
                Gpt2 => bytes(true),
            });
        }
        if !matches!(self.cuts.last(), Some(Gpt2)) {
            all.push(bytes(false));
        }
        Ok(Sequence::new(all))
    }
}
