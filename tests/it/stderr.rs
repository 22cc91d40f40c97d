//! What can't be written to stderr is lost, and nothing else is.
#![cfg(target_os = "linux")]

use crate::support::souffleur;
use std::{fs::File, io::Write, process::Stdio};

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("a device that is full").into()
}

#[test]
fn a_program_goes_on_without_its_stderr() {
    let failed = souffleur(&["complete", "no such file"]).stderr(full()).status().expect("it runs");
    assert_eq!(failed.code(), Some(1));

    let mut command = souffleur(&["stdio", "--log", "info"]);
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(full()).spawn().expect("it starts");
    let request = br#"{"jsonrpc":"2.0","id":1,"method":"complete","params":{"prompt":"def add(a, b):","maxTokens":4}}"#;
    let mut input = program.stdin.take().expect("it is piped");
    input.write_all(&[request, &b"\n"[..]].concat()).expect("it is taken");
    let mut output = String::new();
    // The input stays open, or the call would have a second.
    std::io::BufRead::read_line(&mut std::io::BufReader::new(program.stdout.take().expect("it is piped")), &mut output).expect("a line");
    assert!(output.contains("\"id\":1") && output.contains("\"result\""), "{output}");
    drop(input);
    assert!(program.wait().expect("it ends").success());
}
