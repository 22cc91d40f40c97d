//! Architecture rules, checked on the source text: which module may use which, and what every file must have.

use std::fs;
use std::path::{Path, PathBuf};

/// A folder or file of `src`, the words that its code must not contain, and the rule that they would break.
const RULES: &[(&str, &[&str], &str)] = &[
    (
        "models",
        &["tokio", "actix", "jsonrpsee", "crate::actors", "crate::protocol", "crate::config"],
        "models only computes: it does not use a runtime, actors, the protocol or any other module",
    ),
    ("actors", &["jsonrpsee", "serde_json", "crate::protocol"], "actors schedules and supervises: it does not use JSON or the protocol"),
    ("actors/worker", &["actix", "tokio"], "a worker is plain threads: it does not use actix or tokio"),
    (
        "actors/front",
        &["models::backend", "models::network", "models::tokenizer", "models::prompt", "models::weights", "models::codec"],
        "the front never reads model files: that happens in a worker",
    ),
    ("protocol", &["crate::models", "models::"], "protocol does not use models: it takes shared types from actors"),
    ("models", &["println!", "process::exit"], "stdout carries the protocol, and only main and a worker at end of input call exit"),
    ("protocol", &["println!", "process::exit"], "stdout carries the protocol, and only main and a worker at end of input call exit"),
    ("actors/front", &["println!", "process::exit"], "stdout carries the protocol, and only main and a worker at end of input call exit"),
    ("", &["unbounded_channel", "mpsc::channel()", "todo!(", "unimplemented!(", "dbg!("], "no unbounded queues, no unfinished code"),
];

/// The only modules that may contain `unsafe`.
const UNSAFE: &[&str] = &["models/backend", "models/weights"];

fn source(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a module folder") {
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
fn modules_use_only_what_they_may() {
    let mut broken = Vec::new();
    for (folder, forbidden, rule) in RULES {
        for (path, text) in source(folder) {
            for (number, line) in code(&text) {
                for word in forbidden.iter().filter(|word| line.contains(**word)) {
                    broken.push(format!("src/{}:{number} mentions {word}: {rule}", path.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn unsafe_code_is_confined_to_two_modules() {
    let mut broken = Vec::new();
    for (path, text) in source("") {
        if UNSAFE.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        let words = |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        broken.extend(code(&text).filter(|(_, line)| words(line)).map(|(number, _)| format!("src/{}:{number}", path.display())));
    }
    assert!(broken.is_empty(), "unsafe outside of {UNSAFE:?}: {broken:?}");
    for module in ["protocol", "actors"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(module).join("mod.rs")).expect("a module");
        assert!(text.contains("#![forbid(unsafe_code)]"), "src/{module}/mod.rs opens with #![forbid(unsafe_code)]");
    }
}

#[test]
fn every_file_starts_with_a_doc_comment_and_is_short() {
    for (path, text) in source("") {
        assert!(text.starts_with("//!"), "src/{} does not start with //!", path.display());
        assert!(text.lines().count() <= 400, "src/{} is over 400 lines: split it", path.display());
    }
}
