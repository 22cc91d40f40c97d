//! What `doctor` says, as a person runs it.

use crate::support::souffleur;

#[test]
fn the_self_test_kills_a_worker_and_the_text_goes_on() {
    let output = souffleur(&["doctor", "--self-test"]).output().expect("it runs");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{said}");
    let (before, after) = said.split_once("⟦worker ").unwrap_or_else(|| panic!("nothing was killed: {said}"));
    let (victim, after) = after.split_once(" killed after ").expect("its process");
    assert!(before.contains("def median(numbers):"), "{said}");
    let (_, report) = after.split_once("continued    in worker ").unwrap_or_else(|| panic!("it was not replaced: {said}"));
    assert!(!report.starts_with(victim), "{said}");
    assert!(report.contains("tokens       192 of 192") && report.contains("identical    yes"), "{said}");
}

#[test]
fn a_build_that_can_fail_on_purpose_says_so_and_no_other_does() {
    let output = souffleur(&["--version"]).output().expect("it runs");
    let version = concat!("souffleur ", env!("CARGO_PKG_VERSION"));
    let failpoints = if cfg!(feature = "failpoints") { " with failpoints, for tests only" } else { "" };
    assert_eq!(String::from_utf8(output.stdout).expect("UTF-8"), format!("{version}{failpoints}\n"));
}
