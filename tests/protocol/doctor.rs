//! The output of `doctor` and `--version`.

use crate::support::souffleur;

#[test]
fn the_self_test_kills_a_worker_and_the_text_continues() {
    let output = souffleur(&["doctor", "--self-test"]).output().expect("the program runs");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{stdout}");
    let (before, after) = stdout.split_once("⟦worker ").unwrap_or_else(|| panic!("nothing was killed: {stdout}"));
    let (victim, after) = after.split_once(" killed after ").expect("its pid");
    assert!(before.contains("def median(numbers):"), "{stdout}");
    let (_, report) = after.split_once("continued    in worker ").unwrap_or_else(|| panic!("it was not replaced: {stdout}"));
    assert!(!report.starts_with(victim), "{stdout}");
    assert!(report.contains("tokens       192 of 192") && report.contains("identical    yes"), "{stdout}");
}

#[test]
fn only_a_build_with_failpoints_reports_them_in_its_version() {
    let output = souffleur(&["--version"]).output().expect("the program runs");
    let version = concat!("souffleur ", env!("CARGO_PKG_VERSION"));
    let failpoints = if cfg!(feature = "failpoints") { " with failpoints, for tests only" } else { "" };
    assert_eq!(String::from_utf8(output.stdout).expect("UTF-8"), format!("{version}{failpoints}\n"));
}
