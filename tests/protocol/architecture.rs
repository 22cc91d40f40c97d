//! The house's rules, read from its sources: who may mention whom, and what every file owes its reader.

use std::fs;
use std::path::{Path, PathBuf};

/// A folder or file of `src`, what its code must not mention, and the sentence that then is broken.
const RULES: &[(&str, &[&str], &str)] = &[
    (
        "models",
        &["tokio", "actix", "jsonrpsee", "crate::actors", "crate::protocol", "crate::config"],
        "models is pure compute: it knows no runtime, no actor, no transport and none of the other rooms",
    ),
    ("actors", &["jsonrpsee", "serde_json", "crate::protocol"], "actors decides who runs: it knows no JSON and not the protocol"),
    ("actors/worker", &["actix", "tokio"], "a worker is plain threads: it knows no actix and no tokio"),
    (
        "actors/front",
        &["models::backend", "models::network", "models::tokenizer", "models::prompt", "models::weights", "models::codec"],
        "the front never touches a model: what reads its files runs in a worker",
    ),
    ("protocol", &["crate::models", "models::"], "protocol knows no model: it takes shared types from actors"),
    ("models", &["println!", "process::exit"], "stdout is the protocol, and only main and a worker's end of input exit"),
    ("protocol", &["println!", "process::exit"], "stdout is the protocol, and only main and a worker's end of input exit"),
    ("actors/front", &["println!", "process::exit"], "stdout is the protocol, and only main and a worker's end of input exit"),
    (
        "",
        &["unbounded_channel", "mpsc::channel()", "todo!(", "unimplemented!(", "dbg!("],
        "no queue is without a bound, and nothing is left undone",
    ),
];

/// The only places with `unsafe`.
const UNSAFE: &[&str] = &["models/backend", "models/weights"];

fn source(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a room's folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                files.push((path.strip_prefix(&root).expect("below src").to_owned(), text));
            }
        }
    }
    assert!(!files.is_empty(), "src/{folder} has no source");
    files
}

/// The code without its line comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).map(|(number, line)| (number, line.split_once("//").map_or(line, |(code, _)| code)))
}

#[test]
fn rooms_mention_only_whom_they_may() {
    let mut broken = Vec::new();
    for (folder, forbidden, sentence) in RULES {
        for (path, text) in source(folder) {
            for (number, line) in code(&text) {
                for word in forbidden.iter().filter(|word| line.contains(**word)) {
                    broken.push(format!("src/{}:{number} mentions {word}: {sentence}", path.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn unsafe_code_lives_in_two_places() {
    let mut broken = Vec::new();
    for (path, text) in source("") {
        if UNSAFE.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        let words = |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        broken.extend(code(&text).filter(|(_, line)| words(line)).map(|(number, _)| format!("src/{}:{number}", path.display())));
    }
    assert!(broken.is_empty(), "unsafe outside of {UNSAFE:?}: {broken:?}");
    for room in ["protocol", "actors"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room).join("mod.rs")).expect("a room");
        assert!(text.contains("#![forbid(unsafe_code)]"), "src/{room}/mod.rs opens with #![forbid(unsafe_code)]");
    }
}

#[test]
fn every_file_says_what_it_is_and_stays_readable() {
    for (path, text) in source("") {
        assert!(text.starts_with("//!"), "src/{} opens by saying what it is", path.display());
        assert!(text.lines().count() <= 400, "src/{} is over 400 lines: which second thing moved in?", path.display());
    }
}
