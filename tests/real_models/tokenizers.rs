//! Checks that the tokenizer built from GGUF metadata encodes and decodes as the one built from tokenizer.json of the same
//! vocabulary, on random texts.

use crate::{QWEN_CODER_1_5B, SMOLLM2, folder, gguf};
use souffleur::models::tokenizer::Tokenizer;
use souffleur::models::weights::Files;
use std::time::Instant;

const TEXT_COUNT: usize = 10_000;

/// xorshift64: the same texts in every run.
struct Random(u64);

impl Random {
    /// A number in `0..end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A character of the code points `first..=last`; U+FFFD for a surrogate.
    fn char_in(&mut self, first: u32, last: u32) -> char {
        char::from_u32(first + self.below((last - first + 1) as usize) as u32).unwrap_or('\u{fffd}')
    }
}

/// Difficult text: contractions in all cases, all kinds of whitespace, digits of all scripts, combining characters,
/// special tokens and near misses.
const AWKWARD_TEXTS: &[&str] = &[
    "'s",
    "'S",
    "'T",
    "'Re",
    "'VE",
    "'ll",
    "'LL'd",
    "'\u{17f}",
    "\u{212a}",
    "don't",
    "I'M",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\n\n\n",
    " \n",
    "\n ",
    "\t\t\n",
    "\u{a0}",
    "\u{2003}",
    "\u{3000}",
    "\u{2028}",
    "\u{85}",
    "\u{b}",
    "\u{c}",
    "\u{200b}",
    "\u{200d}",
    "\u{feff}",
    "\0",
    "\u{1b}[0m",
    "\u{7f}",
    "e\u{301}",
    "é",
    "A\u{30a}",
    "\u{212b}",
    "한",
    "\u{1112}\u{1161}\u{11ab}",
    "ﬁ",
    "ß",
    "ẞ",
    "½",
    "²",
    "Ⅷ",
    "٣٤",
    "१२३",
    "𝟘𝟙",
    "①",
    "1234567890",
    "3.14159e-10",
    "0xDEADBEEF",
    "👩‍👩‍👧",
    "🏳️‍🌈",
    "🇩🇪",
    "日本語",
    "漢字かな交じり文",
    "ไทย",
    "العربية",
    "עברית",
    "Ελληνικά",
    "кириллица",
    "\u{64b}",
    "\u{e000}",
    "\u{10ffff}",
    "\u{fffd}",
    "Ġ",
    "Ċ",
    "ĠĠ",
    "<|endoftext|>",
    "<|im_start|>",
    "<|fim_prefix|>",
    "<|",
    "|>",
    "<s>",
    "</s>",
    "<tool_call>",
    "<repo_name>",
    "[INST]",
    "__init__",
    "->",
    "=>",
    "!==",
    "::<>",
    "//",
    "/*",
    "*/",
    "```rust\n",
    "$$",
    "#![",
    "{}",
    "(((",
    "\\\\",
    "\"\"\"",
    "¿?",
    "…",
    "—",
    "«»",
    "\u{ad}",
];

/// Ranges of code points, chosen with equal probability.
const CODE_POINT_RANGES: &[(u32, u32)] = &[
    (0, 0x7f),
    (0x20, 0x7e),
    (0x80, 0x24f),
    (0x300, 0x36f),
    (0x370, 0x52f),
    (0x590, 0x6ff),
    (0x900, 0xdff),
    (0x1100, 0x11ff),
    (0x1e00, 0x20ff),
    (0x2100, 0x2bff),
    (0x3000, 0x30ff),
    (0x4e00, 0x9fff),
    (0xac00, 0xd7a3),
    (0xf900, 0xffff),
    (0x10000, 0x1ffff),
    (0, 0x10ffff),
];

/// One to twelve random pieces: awkward texts, random characters, one text repeated, and parts of the source code `code`.
fn random_text(random: &mut Random, code: &str) -> String {
    let mut text = String::new();
    for _ in 0..=random.below(12) {
        match random.below(5) {
            0 | 1 => text += random.pick(AWKWARD_TEXTS),
            2 => {
                let (first, last) = random.pick(CODE_POINT_RANGES);
                (0..=random.below(10)).for_each(|_| text.push(random.char_in(first, last)));
            }
            3 => text += &random.pick(&[" ", "\n", "a", "0", "\t", "=", "'"]).repeat(random.below(70)),
            _ => {
                let start = random.below(code.len());
                let tail = &code[(start..).find(|&at| code.is_char_boundary(at)).expect("the end is a character boundary")..];
                text.extend(tail.chars().take(random.below(200)));
            }
        }
    }
    text
}

/// Compares the tokenizer of the GGUF file `model` with `from_json` on random texts.
fn compare(model: &str, from_json: &Tokenizer) {
    let start = Instant::now();
    let from_gguf = Tokenizer::open(&Files::open(&gguf(model), None).expect("files")).expect("a tokenizer");
    eprintln!("{model}: tokenizer ready after {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
    assert!(from_gguf.control_tokens().eq(from_json.control_tokens()), "control tokens");
    let code = [include_str!("main.rs"), include_str!("make.py"), include_str!("fetch.sh"), include_str!("tokenizers.rs")].join("\n");
    let random = &mut Random(0x5eed);
    let mut tokens = 0;
    for number in 0..TEXT_COUNT {
        let text = random_text(random, &code);
        let (got, want) = (from_gguf.encode(&text), from_json.encode(&text));
        assert_eq!(got, want, "text {number}: {text:?}");
        let ids = got.unwrap_or_else(|error| panic!("text {number}: {text:?}: {error}"));
        assert_eq!(from_gguf.decode(&ids), from_json.decode(&ids), "text {number}: {text:?}");
        tokens += ids.len();
    }
    eprintln!("{model}: {TEXT_COUNT} texts of {tokens} tokens are equal");
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn qwen_gguf_and_json_tokenizers_agree() {
    let json = std::fs::read(folder().join("qwen2.5-tokenizer/tokenizer.json")).expect("Qwen's tokenizer");
    compare(QWEN_CODER_1_5B, &Tokenizer::parse(&json, None).expect("a tokenizer"));
}

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn smollm2_gguf_and_json_tokenizers_agree() {
    let json = std::fs::read(folder().join("smollm2-mlx/tokenizer.json")).expect("SmolLM2's tokenizer");
    compare(SMOLLM2, &Tokenizer::parse(&json, None).expect("a tokenizer"));
}
