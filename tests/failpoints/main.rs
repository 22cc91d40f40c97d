//! The program, made to fail on purpose: its worker a process of its own, its peer at the other end of a real transport.
//!
//! What is tested is in `souffleur::failpoints`: a point that is added there is tested by being there.

mod deaths;
mod points;
mod stages;
mod stand;
#[path = "../protocol/support.rs"]
#[allow(dead_code, reason = "these tests need a part of what those over there do")]
mod support;

#[test]
fn this_build_says_what_it_is() {
    for arguments in [&["--version"][..], &["doctor"]] {
        let output = support::souffleur(arguments).output().expect("it runs");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(said.lines().next().is_some_and(|line| line.ends_with("with failpoints, for tests only")), "{said}");
    }
}
