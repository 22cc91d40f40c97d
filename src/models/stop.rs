//! Tokens to text: complete UTF-8 only, stop sequences found in the text and held back while they may be coming.

use super::Result;
use super::tokenizer::{Decoding, Tokenizer};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Perhaps empty: held back, or an unfinished character.
    Text(String),
    /// A stop sequence appeared; the text before it.
    Stop(String),
}

/// One sequence's text.
pub struct Stopper {
    stops: Vec<String>,
    /// Bytes that a reader has already: of a life that ended.
    skip_bytes: usize,
    decoding: Decoding,
    held: String,
}

impl Stopper {
    pub fn new(stops: Vec<String>, skip_bytes: usize) -> Self {
        Self { stops, skip_bytes, decoding: Decoding::default(), held: String::new() }
    }

    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<Piece> {
        let Some(text) = tokenizer.step(&mut self.decoding, token)? else { return Ok(Piece::Text(String::new())) };
        Ok(self.push_text(&text))
    }

    /// What was held back, when the text ends without its stop sequence.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        self.unskipped(held)
    }

    fn push_text(&mut self, text: &str) -> Piece {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            let text = self.held[..at].to_owned();
            self.held.clear();
            return Piece::Stop(self.unskipped(text));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, held);
        Piece::Text(self.unskipped(text))
    }

    fn unskipped(&mut self, mut text: String) -> String {
        let skip = self.skip_bytes.min(text.len());
        self.skip_bytes -= skip;
        // What was delivered ended at a character, so this does too.
        text.drain(..skip);
        text
    }
}

/// Bytes at the end of `text` that `stop` begins with, less than all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && text.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pushes the pieces and returns the whole text and whether it stopped.
    fn run(stops: &[&str], skip: usize, pieces: &[&str]) -> (String, bool) {
        let mut stopper = Stopper::new(stops.iter().map(|&stop| stop.to_owned()).collect(), skip);
        let mut text = String::new();
        for piece in pieces {
            match stopper.push_text(piece) {
                Piece::Text(new) => text += &new,
                Piece::Stop(new) => return (text + &new, true),
            }
        }
        (text + &stopper.finish(), false)
    }

    #[test]
    fn stops_across_pieces() {
        assert_eq!(run(&["\n\n"], 0, &["a\n", "\nb"]), ("a".into(), true));
        assert_eq!(run(&["\n\n"], 0, &["a\n", "b\n"]), ("a\nb\n".into(), false));
        assert_eq!(run(&["END"], 0, &["xE", "N", "E", "ND", "y"]), ("xEN".into(), true));
        assert_eq!(run(&["été"], 0, &["l'é", "t", "é!"]), ("l'".into(), true));
    }

    #[test]
    fn the_earliest_of_several_wins() {
        assert_eq!(run(&["cd", "b"], 0, &["abcd"]), ("a".into(), true));
    }

    #[test]
    fn nothing_of_a_stop_leaks_early() {
        let mut stopper = Stopper::new(vec!["</code>".into()], 0);
        assert_eq!(stopper.push_text("x</co"), Piece::Text("x".into()));
        assert_eq!(stopper.push_text("de"), Piece::Text(String::new()));
        assert_eq!(stopper.push_text(">"), Piece::Stop(String::new()));
    }

    #[test]
    fn skipped_bytes_are_not_said_twice() {
        assert_eq!(run(&["!"], 3, &["ab", "cd", "e!"]), ("de".into(), true));
    }

    proptest! {
        /// However the text is cut, the result is that of the whole text.
        #[test]
        fn pieces_do_not_matter(text in "[ab\u{e9}\n]{0,24}", stops in prop::collection::vec("[ab\u{e9}\n]{1,3}", 0..3), cuts in prop::collection::vec(0usize..24, 0..6)) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut at: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= text.len() && text.is_char_boundary(cut)).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let pieces: Vec<&str> = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let end = stops.iter().filter_map(|stop| text.find(stop)).min();
            prop_assert_eq!(run(&stops, 0, &pieces), (text[..end.unwrap_or(text.len())].to_owned(), end.is_some()));
        }
    }
}
