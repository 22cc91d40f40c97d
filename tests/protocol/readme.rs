//! What a newcomer is told to type works.

use crate::support::souffleur;

/// Tokens are no characters: of some texts a model reads fewer.
#[test]
fn a_text_of_many_tokens_is_completed_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("table.c");
    let line = "    0x3F, 0x8A, 0x11, 0xC7, 0x5E, 0x90, 0x2B, 0xD4, 0x66, 0xF1, 0x08, 0xB3,\n";
    std::fs::write(&file, line.repeat(200)).expect("it is written");
    let output = souffleur(&["complete", file.to_str().expect("UTF-8")]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_commands_of_the_readme_and_the_places_of_the_examples_complete() {
    let readme = include_str!("../../README.md");
    let commands: Vec<Vec<&str>> = readme
        .lines()
        .filter_map(|line| line.trim_start_matches("$ ").strip_prefix("cargo run --release -- "))
        .map(|arguments| arguments.split(' ').collect())
        .collect();
    assert!(!commands.is_empty(), "README.md gives no first command");
    let examples = include_str!("../../examples/README.md");
    let places: Vec<Vec<&str>> =
        examples.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).map(|place| vec!["complete", place]).collect();
    assert_eq!(places.len(), 3, "{places:?}");
    for arguments in commands.iter().chain(&places) {
        let output = souffleur(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("it runs");
        let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !said.0.trim().is_empty(), "{arguments:?}: {said:?}");
    }
}
