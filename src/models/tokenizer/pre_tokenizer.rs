//! Pre-tokenizers by their GGUF name (`tokenizer.ggml.pre`): they split a text into words before BPE merges.
//!
//! The regular expressions are those of the models' tokenizer.json files; those of `default` are llama.cpp's.

use tokenizers::SplitDelimiterBehavior::Isolated;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{self, SplitPattern};
use tokenizers::{PreTokenizerWrapper, Result};

/// Pre-tokenizer and settings of one kind of vocabulary.
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    /// Normalize to Unicode's NFC first.
    pub(super) nfc: bool,
    /// Encode a word that is in the vocabulary as that token, without merging.
    pub(super) ignore_merges: bool,
    /// Default of `tokenizer.ggml.add_bos_token`.
    pub(super) add_bos: bool,
    /// Applied in order, each to the parts that the one before it gives.
    splits: &'static [Split],
}

enum Split {
    Regex(&'static str),
    /// Split off every digit, of any script.
    Digits,
    /// GPT-2's regular expression, which the byte-level pre-tokenizer has built in.
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

/// The pre-tokenizer with a GGUF name.
pub(super) fn by_name(name: &str) -> Option<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|pre_tokenizer| pre_tokenizer.names.contains(&name))
}

/// All supported names, for an error.
pub(super) fn names() -> String {
    PRE_TOKENIZERS.iter().flat_map(|pre_tokenizer| pre_tokenizer.names).copied().collect::<Vec<_>>().join(", ")
}

impl PreTokenizer {
    /// The splits, then the byte-to-character mapping of byte-level BPE.
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
