//! What a newcomer is told to type works.

use crate::support::souffleur;

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
