//! How a text is cut into words before its bytes are merged, by the name that GGUF gives it.
//!
//! The expressions are those of the models' own tokenizers, and of llama.cpp for `default`, where there is none.

use tokenizers::SplitDelimiterBehavior::Isolated;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{self, SplitPattern};
use tokenizers::{PreTokenizerWrapper, Result};

/// How one kind of vocabulary reads.
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    /// Composed characters and what they are composed of are one (Unicode's NFC).
    pub(super) nfc: bool,
    /// A word that is a token is that token, whatever its merges say.
    pub(super) ignore_merges: bool,
    /// Begins with the beginning-of-text token where the file doesn't say.
    pub(super) add_bos: bool,
    /// Each splits what the ones before it left.
    splits: &'static [Split],
}

enum Split {
    Regex(&'static str),
    /// Every digit of any script alone.
    Digits,
    Gpt2,
}
use Split::{Gpt2, Regex};

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer { names: &["gpt-2", "gpt2", "phi-2", "mpt", "olmo", "mellum"], splits: &[Gpt2], ..BASE },
    PreTokenizer { names: &["smollm", "starcoder", "refact", "command-r", "codeshell"], splits: &[Split::Digits, Gpt2], ..BASE },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        nfc: true,
        splits: &[Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")],
        ..BASE
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        ignore_merges: true,
        add_bos: true,
        splits: &[Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        ..BASE
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        splits: &[Regex(r"[\r\n]"), Regex(r"\s?\p{L}+"), Regex(r"\s?\p{P}+"), Regex("[一-龥ࠀ-一가-퟿]+"), Split::Digits],
        ..BASE
    },
    PreTokenizer {
        names: &["default"],
        splits: &[
            Regex(r"[\p{P}\$\+<=>\^~\|]+"),
            Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
            Regex(r"\p{N}+"),
            Regex("[0-9][0-9][0-9]"),
        ],
        ..BASE
    },
];

const BASE: PreTokenizer = PreTokenizer { names: &[], nfc: false, ignore_merges: false, add_bos: false, splits: &[] };

/// The reading of that name.
pub(super) fn by_name(name: &str) -> Option<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|pre_tokenizer| pre_tokenizer.names.contains(&name))
}

/// All names, for a message.
pub(super) fn names() -> String {
    PRE_TOKENIZERS.iter().flat_map(|pre_tokenizer| pre_tokenizer.names).copied().collect::<Vec<_>>().join(", ")
}

impl PreTokenizer {
    /// The splits, then bytes as the characters that byte-level vocabularies write them with.
    pub(super) fn build(&self) -> Result<Sequence> {
        let bytes = |split| PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, split));
        let mut all = Vec::new();
        for split in self.splits {
            all.push(match split {
                Regex(pattern) => PreTokenizerWrapper::Split(split::Split::new(SplitPattern::Regex((*pattern).into()), Isolated, false)?),
                Split::Digits => PreTokenizerWrapper::Digits(Digits::new(true)),
                Gpt2 => bytes(true),
            });
        }
        if !matches!(self.splits.last(), Some(Gpt2)) {
            all.push(bytes(false));
        }
        Ok(Sequence::new(all))
    }
}
