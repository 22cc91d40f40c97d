//! Plays `tests/transcripts/*.txt` against the real program, over both framings of stdio and a WebSocket.
//!
//! ```text
//! # a comment
//! > {…}         is sent verbatim
//! < {…}         must come next; "..." stands for any value, and a member "..." allows further members
//! * {…}         comes any number of times, or never
//! & {…}         lines of these in a row come in any order
//! close 1000    the peer closes, a WebSocket with this code
//! exit 0        the program exits with this code; checked over stdio only
//! ```

use crate::support::{Client, Received, TRANSPORTS, Transport};
use serde_json::Value;
use std::{fs, path::Path};

macro_rules! transcripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            TRANSPORTS.into_iter().for_each(|transport| play(stringify!($name), transport));
        })*

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

transcripts! { batches cancel chat complete errors hello ids infill lsp models stream tokens }

#[test]
fn every_transcript_has_a_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let stems: Vec<_> = files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(stems, NAMES);
}

fn play(name: &str, transport: Transport) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/transcripts/{name}.txt"));
    let text = fs::read_to_string(file).unwrap();
    let mut client = Client::new(transport);
    // The message that ended a repetition; it belongs to the next line.
    let mut peeked = None;
    let mut lines = text.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let here = format!("{name}.txt:{} over {transport:?}", index + 1);
        let (mark, rest) = line.split_at(line.len().min(2));
        let mut next = |client: &mut Client| peeked.take().unwrap_or_else(|| client.receive());
        match mark {
            "" | "# " | "#" => {}
            "> " => client.send(rest),
            "< " => expect(&pattern(rest, &here), &next(&mut client), &here),
            "* " => {
                let pattern = pattern(rest, &here);
                peeked = loop {
                    match next(&mut client) {
                        Received::Message(message) if matches(&pattern, &message) => {}
                        other => break Some(other),
                    }
                };
            }
            "& " => {
                let mut patterns = vec![pattern(rest, &here)];
                while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with("& ")) {
                    patterns.push(pattern(&line[2..], &here));
                }
                while !patterns.is_empty() {
                    let received = next(&mut client);
                    let Received::Message(message) = &received else { panic!("{here}: closed") };
                    let found = patterns.iter().position(|pattern| matches(pattern, message));
                    patterns.swap_remove(found.unwrap_or_else(|| panic!("{here}: {message} matches none of {patterns:?}")));
                }
            }
            "cl" => {
                let code = line.strip_prefix("close ").and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{here}: {line}"));
                let closed = Received::Closed((transport == Transport::WebSocket).then_some(code));
                assert_eq!(next(&mut client), closed, "{here}");
            }
            "ex" => {
                let code = line.strip_prefix("exit ").and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{here}: {line}"));
                if let Some(status) = client.exit_status() {
                    assert_eq!(status.code(), Some(code), "{here}");
                }
            }
            _ => panic!("{here}: unknown line {line:?}"),
        }
    }
}

fn pattern(text: &str, here: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{here}: {error}"))
}

fn expect(pattern: &Value, received: &Received, here: &str) {
    match received {
        Received::Message(message) => assert!(matches(pattern, message), "{here}\nexpected {pattern}\nreceived {message}"),
        Received::Closed(code) => panic!("{here}: closed ({code:?})"),
    }
}

fn matches(pattern: &Value, value: &Value) -> bool {
    match (pattern, value) {
        (Value::String(any), _) if any == "..." => true,
        (Value::Object(pattern), Value::Object(value)) => {
            let open = pattern.contains_key("...");
            let named = || pattern.iter().filter(|(name, _)| *name != "...");
            named().all(|(name, pattern)| value.get(name).is_some_and(|value| matches(pattern, value)))
                && (open || named().count() == value.len())
        }
        (Value::Array(pattern), Value::Array(value)) => {
            pattern.len() == value.len() && pattern.iter().zip(value).all(|(pattern, value)| matches(pattern, value))
        }
        (pattern, value) => pattern == value,
    }
}
