//! Fault injection through failpoints: the real program, its worker process, and a client over a real transport.
//!
//! The tests iterate over `souffleur::failpoints::Point::ALL`, so a new failpoint is tested automatically.

mod every_failpoint;
mod harness;
mod repeated_crashes;
mod stage_panics;
#[path = "../protocol/support.rs"]
#[allow(dead_code, reason = "the protocol tests use the rest of it")]
mod support;

#[test]
fn a_build_with_failpoints_reports_it() {
    for arguments in [&["--version"][..], &["doctor"]] {
        let output = support::souffleur(arguments).output().expect("it runs");
        let stdout = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(stdout.lines().next().is_some_and(|line| line.ends_with("with failpoints, for tests only")), "{stdout}");
    }
}
