//! The commands in README.md and examples/README.md work.

use crate::support::souffleur;

/// The file's text fits the context in characters but not in tokens.
#[test]
fn a_file_with_short_tokens_is_completed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("table.c");
    let line = "    0x3F, 0x8A, 0x11, 0xC7, 0x5E, 0x90, 0x2B, 0xD4, 0x66, 0xF1, 0x08, 0xB3,\n";
    std::fs::write(&file, line.repeat(200)).expect("the file is written");
    let output = souffleur(&["complete", file.to_str().expect("UTF-8")]).output().expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn commands_of_the_readme_and_positions_of_the_examples_complete() {
    let readme = include_str!("../../README.md");
    let commands: Vec<Vec<&str>> = readme
        .lines()
        .filter_map(|line| line.trim_start_matches("$ ").strip_prefix("cargo run --release -- "))
        .map(|arguments| arguments.split(' ').collect())
        .collect();
    assert!(!commands.is_empty(), "README.md has no command");
    let examples = include_str!("../../examples/README.md");
    let positions: Vec<Vec<&str>> = examples
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(|position| vec!["complete", position])
        .collect();
    assert_eq!(positions.len(), 3, "{positions:?}");
    for arguments in commands.iter().chain(&positions) {
        let output = souffleur(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("the program runs");
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !stdout.trim().is_empty(), "{arguments:?}: {stdout:?} {stderr:?}");
    }
}
