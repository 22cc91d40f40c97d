//! A full stderr loses log lines and nothing else.
#![cfg(target_os = "linux")]

use crate::support::{Received, StdioClient, Transport, souffleur};
use serde_json::json;
use std::{fs::File, process::Stdio};

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("/dev/full").into()
}

#[test]
fn the_program_continues_when_stderr_is_full() {
    let failed = souffleur(&["complete", "no such file"]).stderr(full()).status().expect("the program runs");
    assert_eq!(failed.code(), Some(1));

    let mut command = StdioClient::command(&["--log", "info"]);
    command.stderr(full());
    let mut program = StdioClient::start(Transport::Lines, command);
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "complete", "params": { "prompt": "def add(a, b):", "maxTokens": 4 } });
    program.write(&program.frame(&request.to_string()));
    let response = program.receive();
    assert!(matches!(&response, Received::Message(response) if response["id"] == 1 && response["result"].is_object()), "{response:?}");
    program.close();
    assert!(program.program.wait().success());
}
