//! Streaming detokenization: complete UTF-8 only, with stop sequences matched in the text.

use super::Result;
use super::tokenizer::{DetokenizerState, Tokenizer};

/// The text that one token adds to a completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextDelta {
    /// Empty while a character is incomplete or text is held back.
    Text(String),
    /// The text before a stop sequence that was found. The completion ends here.
    Stop(String),
}

/// Turns the tokens of one sequence into text.
pub struct Detokenizer {
    state: DetokenizerState,
    matcher: StopMatcher,
    /// Bytes of text still to drop, because the client already received them from a worker that failed.
    skip_bytes: usize,
}

impl Detokenizer {
    /// The first `skip_bytes` bytes of text are dropped; they end at a character boundary. No stop sequence is empty.
    pub fn new(stops: Vec<String>, skip_bytes: usize) -> Self {
        Self { state: DetokenizerState::default(), matcher: StopMatcher { stops, held_back: String::new() }, skip_bytes }
    }

    /// # Errors
    /// `ModelFile` if the tokenizer's decoder fails.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<TextDelta> {
        let Some(text) = tokenizer.decode_step(&mut self.state, token)? else { return Ok(TextDelta::Text(String::new())) };
        Ok(self.push_text(&text))
    }

    /// The text that was held back, for a completion that ends without a stop sequence.
    pub fn finish(&mut self) -> String {
        let text = std::mem::take(&mut self.matcher.held_back);
        self.skip_received(text)
    }

    fn push_text(&mut self, text: &str) -> TextDelta {
        match self.matcher.push(text) {
            TextDelta::Text(text) => TextDelta::Text(self.skip_received(text)),
            TextDelta::Stop(text) => TextDelta::Stop(self.skip_received(text)),
        }
    }

    fn skip_received(&mut self, mut text: String) -> String {
        let skip = self.skip_bytes.min(text.len());
        self.skip_bytes -= skip;
        text.drain(..skip);
        text
    }
}

/// Finds stop sequences in streamed text and holds back text that may be the beginning of one.
struct StopMatcher {
    stops: Vec<String>,
    held_back: String,
}

impl StopMatcher {
    fn push(&mut self, text: &str) -> TextDelta {
        self.held_back.push_str(text);
        // The stop sequence that is complete first: which one starts first depends on how the text is divided into tokens.
        let range = |stop: &String| self.held_back.find(stop.as_str()).map(|start| (start + stop.len(), start));
        if let Some((_, start)) = self.stops.iter().filter_map(range).min() {
            let mut text = std::mem::take(&mut self.held_back);
            text.truncate(start);
            return TextDelta::Stop(text);
        }
        let keep = self.stops.iter().map(|stop| partial_match(&self.held_back, stop)).max().unwrap_or(0);
        let held_back = self.held_back.split_off(self.held_back.len() - keep);
        TextDelta::Text(std::mem::replace(&mut self.held_back, held_back))
    }
}

/// Bytes of the longest proper prefix of `stop` that `text` ends with.
fn partial_match(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && text.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pushes the chunks of text; returns the whole output and whether a stop sequence was found.
    fn run(stops: &[&str], skip: usize, chunks: &[&str]) -> (String, bool) {
        let mut detokenizer = Detokenizer::new(stops.iter().map(|&stop| stop.to_owned()).collect(), skip);
        let mut text = String::new();
        for chunk in chunks {
            match detokenizer.push_text(chunk) {
                TextDelta::Text(new) => text += &new,
                TextDelta::Stop(new) => return (text + &new, true),
            }
        }
        (text + &detokenizer.finish(), false)
    }

    #[test]
    fn stop_sequences_span_chunks() {
        assert_eq!(run(&["\n\n"], 0, &["a\n", "\nb"]), ("a".into(), true));
        assert_eq!(run(&["\n\n"], 0, &["a\n", "b\n"]), ("a\nb\n".into(), false));
        assert_eq!(run(&["END"], 0, &["xE", "N", "E", "ND", "y"]), ("xEN".into(), true));
        assert_eq!(run(&["été"], 0, &["l'é", "t", "é!"]), ("l'".into(), true));
    }

    #[test]
    fn the_earliest_stop_sequence_wins() {
        assert_eq!(run(&["cd", "b"], 0, &["abcd"]), ("a".into(), true));
    }

    #[test]
    fn the_beginning_of_a_stop_sequence_is_held_back() {
        let mut detokenizer = Detokenizer::new(vec!["</code>".into()], 0);
        assert_eq!(detokenizer.push_text("x</co"), TextDelta::Text("x".into()));
        assert_eq!(detokenizer.push_text("de"), TextDelta::Text(String::new()));
        assert_eq!(detokenizer.push_text(">"), TextDelta::Stop(String::new()));
    }

    #[test]
    fn skipped_bytes_are_not_emitted() {
        assert_eq!(run(&["!"], 3, &["ab", "cd", "e!"]), ("de".into(), true));
    }

    #[test]
    fn the_stop_sequence_that_is_complete_first_wins() {
        let stops = ["\n", "é\n\n"];
        for chunks in [&["aé\n\n"][..], &["aé", "\n\n"], &["a", "é", "\n", "\n"]] {
            assert_eq!(run(&stops, 0, chunks), ("aé".into(), true), "{chunks:?}");
        }
    }

    proptest! {
        /// The result does not depend on how the text is split into chunks.
        #[test]
        fn chunk_boundaries_do_not_matter(text in "[ab\u{e9}\n]{0,24}", stops in prop::collection::vec("[ab\u{e9}\n]{1,3}", 0..3), cuts in prop::collection::vec(0usize..24, 0..6)) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut at: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= text.len() && text.is_char_boundary(cut)).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let chunks: Vec<&str> = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let first = stops.iter().filter_map(|stop| text.find(stop).map(|start| (start + stop.len(), start))).min();
            let end = first.map(|(_, start)| start);
            prop_assert_eq!(run(&stops, 0, &chunks), (text[..end.unwrap_or(text.len())].to_owned(), end.is_some()));
        }
    }
}
