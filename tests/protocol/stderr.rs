//! What can't be written to stderr is lost, and nothing else is.
#![cfg(target_os = "linux")]

use crate::support::{Received, StdioClient, Transport, souffleur};
use serde_json::json;
use std::{fs::File, process::Stdio};

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("a device that is full").into()
}

#[test]
fn a_program_goes_on_without_its_stderr() {
    let failed = souffleur(&["complete", "no such file"]).stderr(full()).status().expect("it runs");
    assert_eq!(failed.code(), Some(1));

    let mut command = StdioClient::command(&["--log", "info"]);
    command.stderr(full());
    let mut program = StdioClient::start(Transport::Lines, command);
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "complete", "params": { "prompt": "def add(a, b):", "maxTokens": 4 } });
    program.write(&program.frame(&request.to_string()));
    let answer = program.receive();
    assert!(matches!(&answer, Received::Message(answer) if answer["id"] == 1 && answer["result"].is_object()), "{answer:?}");
    program.close();
    assert!(program.program.wait().success());
}
