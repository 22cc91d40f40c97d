//! Invalid and malicious input: exactly one typed error, or the close code that RFC 6455 requires, and no effect on
//! other clients.

use crate::{
    oversized_model::oversized_model,
    support::{Client, Program, Received, Server, StdioClient, TRANSPORTS, Transport, call, model_folder, receive, souffleur},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    process::Stdio,
};

/// The message size limit in PROTOCOL.md.
const MESSAGE_BYTES: usize = 4 << 20;

#[track_caller]
fn refused(response: &Value, id: Value, code: i32, kind: &str) {
    assert_eq!(response["id"], id, "{response}");
    assert_eq!((&response["error"]["code"], &response["error"]["data"]["kind"]), (&json!(code), &json!(kind)), "{response}");
}

/// The connection still works, and no other message is pending.
#[track_caller]
fn assert_usable(client: &mut Client) {
    let response = client.request(call("\"alive\"", "status", "{}"));
    assert_eq!(response["id"], "alive", "{response}");
}

/// Over every transport: sends each text, checks the one response, and checks that the connection still works.
#[track_caller]
fn each(texts: &[&str], check: impl Fn(&str, &Value)) {
    for transport in TRANSPORTS {
        let mut client = Client::new(transport);
        for text in texts {
            let response = client.request(text);
            check(text, &response);
            assert_usable(&mut client);
        }
    }
}

#[test]
fn bad_json() {
    each(&["{", "nul", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"stat", "{} {}", "[1,]", "\u{feff}x"], |_, response| {
        refused(response, Value::Null, -32700, "parse_error");
    });
}

#[test]
fn a_hundred_thousand_nested_arrays() {
    let open = "[".repeat(100_000);
    let closed = format!("{open}{}", "]".repeat(100_000));
    let within = call("1", "complete", format!(r#"{{"prompt":{closed}}}"#));
    each(&[&open, &closed, &within], |_, response| refused(response, Value::Null, -32700, "parse_error"));
}

#[test]
fn lone_surrogates() {
    let within = call("1", "complete", r#"{"prompt":"\ud800"}"#);
    let cut = call("1", "complete", r#"{"prompt":"\ud83d"}"#);
    let swapped = call("1", "complete", r#"{"prompt":"\udc00\ud800"}"#);
    each(&[&within, &cut, &swapped, &call(r#""\udfff""#, "status", "{}")], |_, response| {
        refused(response, Value::Null, -32700, "parse_error")
    });
}

#[test]
fn an_empty_batch() {
    each(&["[]", " [ ] "], |_, response| refused(response, Value::Null, -32600, "invalid_request"));
}

#[test]
fn a_batch_that_is_too_large() {
    let batch = format!("[{}]", vec![call("1", "status", "{}"); 33].join(","));
    each(&[&batch], |_, response| {
        refused(response, Value::Null, -32600, "batch_too_large");
        assert_eq!(response["error"]["data"]["limit"], 32);
    });
}

#[test]
fn ids_of_every_type() {
    let request = |id: &str| call(id, "models/list", "{}");
    for transport in TRANSPORTS {
        let mut client = Client::new(transport);
        for id in ["0", "-1", "1", "9007199254740993", "-9007199254740993", "18446744073709551616", "\"\"", "\"1\"", "\"é\""] {
            let response = client.request(request(id));
            assert_eq!(response["id"], serde_json::from_str::<Value>(id).unwrap(), "{transport:?}");
            assert!(response.get("result").is_some(), "{response}");
        }
        for id in ["null", "1.5", "1.0", "1e2", "true", "{}", "{\"a\":1}", "[]", "[1]"] {
            refused(&client.request(request(id)), Value::Null, -32600, "invalid_request");
        }
        assert_usable(&mut client);
    }
}

#[test]
fn an_id_in_flight_used_again() {
    for transport in TRANSPORTS {
        let mut client = Client::new(transport);
        client.send(call("1", "complete", r#"{"prompt":"x","maxTokens":2000,"logitBias":{"0":-100}}"#));
        refused(&client.request(call("1", "status", "{}")), Value::Null, -32600, "id_in_flight");
        client.send(call("2", "cancel", r#"{"id":1}"#));
        refused(&client.response(), json!(1), -32800, "cancelled");
        assert_eq!(client.response()["id"], 2);
        assert!(client.request(call("1", "status", "{}")).get("result").is_some());
    }
}

#[test]
fn an_unknown_method() {
    let long = call("1", &"m".repeat(100_000), "{}");
    each(&[&call("1", "no/such", "{}"), &call("1", "", "{}"), &call("1", "$/progress", "{}"), &long], |_, response| {
        refused(response, json!(1), -32601, "unknown_method");
        assert!(response.to_string().len() < 1000, "long input is echoed");
    });
}

#[test]
fn errors_do_not_echo_long_input() {
    let long = "m".repeat(100_000);
    let texts = [
        call("1", "complete", json!({ "prompt": "x", "model": long })),
        call("1", "complete", json!({ "prompt": "x", &long: 1 })),
        call("1", "complete", json!({ "prompt": "x", "temperature": long })),
        call("1", "complete", json!({ "prompt": "x", "partialResultToken": long })),
        call("1", "complete", json!({ "prompt": "x", "workDoneToken": "w" })),
    ];
    each(&texts.each_ref().map(String::as_str), |_, response| {
        assert!(response["id"] == 1 && response["error"]["code"].is_i64(), "{response}");
        assert!(response.to_string().len() < 1500, "{response}");
    });
}

#[test]
fn invalid_requests() {
    let texts = [
        r#"{}"#,
        "1",
        "\"x\"",
        "null",
        "true",
        r#"{"jsonrpc":"2.0"}"#,
        r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"status"}"#,
        r#"{"jsonrpc":"2.0","method":"status","method":"status","id":1}"#,
        r#"{"jsonrpc":"2.0","result":1}"#,
    ];
    each(&texts, |_, response| refused(response, Value::Null, -32600, "invalid_request"));
    let texts = [
        r#"{"id":1,"method":"status"}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"status"}"#,
        r#"{"jsonrpc":2,"id":1,"method":"status"}"#,
        r#"{"jsonrpc":"2.0","id":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"status","params":1}"#,
    ];
    each(&texts, |_, response| refused(response, json!(1), -32600, "invalid_request"));
}

#[test]
fn an_unknown_or_out_of_range_parameter() {
    let cases = [
        ("complete", r#"{"prompt":"x","nope":1}"#, "nope"),
        ("complete", r#"{"prompt":"x","prompt":"y"}"#, "prompt"),
        ("complete", r#"{}"#, "prompt"),
        ("complete", r#"["x"]"#, "params"),
        ("complete", r#"{"prompt":"x","temperature":-0.1}"#, "temperature"),
        ("complete", r#"{"prompt":"x","temperature":1e300}"#, "temperature"),
        ("complete", r#"{"prompt":"x","topK":-1}"#, "topK"),
        ("complete", r#"{"prompt":"x","topP":1.5}"#, "topP"),
        ("complete", r#"{"prompt":"x","maxTokens":0}"#, "maxTokens"),
        ("complete", r#"{"prompt":"x","maxTokens":"1"}"#, "maxTokens"),
        ("complete", r#"{"prompt":"x","seed":9007199254740992}"#, "seed"),
        ("complete", r#"{"prompt":"x","logprobs":21}"#, "logprobs"),
        ("complete", r#"{"prompt":"x","stop":[""]}"#, "stop"),
        ("complete", r#"{"prompt":"x","logitBias":{"99999":1}}"#, "logitBias"),
        ("infill", r#"{"prefix":"x","suffix":7}"#, "suffix"),
        ("infill", r#"{"prefix":"x","order":"middle"}"#, "order"),
        ("infill", r#"{"prefix":"x","files":[{"path":"a"}]}"#, "files"),
        ("chat", r#"{"messages":[{"role":"god","content":""}]}"#, "messages"),
        ("detokenize", r#"{"tokens":[-1]}"#, "tokens"),
        ("detokenize", r#"{"tokens":[99999]}"#, "tokens"),
        ("cancel", r#"{"id":1.5}"#, "id"),
        ("status", r#"{"verbose":true}"#, "verbose"),
        ("models/load", r#"{}"#, "model"),
        ("initialize", r#"[]"#, "params"),
    ];
    for transport in TRANSPORTS {
        let mut client = Client::new(transport);
        for (method, params, parameter) in cases {
            if method == "initialize" {
                client = Client::new(transport);
            }
            let response = client.request(call("1", method, params));
            refused(&response, json!(1), -32602, "invalid_params");
            assert_eq!(response["error"]["data"]["parameter"], parameter, "{method} {params}: {response}");
        }
        assert_usable(&mut client);
    }
}

#[test]
fn a_text_that_is_too_long() {
    let text = "x".repeat((2 << 20) + 1);
    each(
        &[&call("1", "tokenize", json!({ "text": text })), &call("1", "infill", json!({ "prefix": "", "suffix": text }))],
        |_, response| {
            refused(response, json!(1), -32602, "invalid_params");
            assert_eq!(response["error"]["data"]["limit"], 2 << 20);
        },
    );
}

#[test]
fn a_prompt_longer_than_the_context() {
    let prompt = "x = 1\n".repeat(2000);
    each(&[&call("1", "complete", json!({ "prompt": prompt }))], |_, response| {
        refused(response, json!(1), -32070, "context_overflow");
        assert_eq!(response["error"]["data"]["limit"], 2048);
        assert!(response["error"]["data"]["needed"].as_u64() > Some(2048), "{response}");
    });
}

#[test]
fn an_unknown_model() {
    let texts = ["complete", "infill", "chat", "tokenize", "models/load", "models/show", "models/unload"].map(|method| {
        let params = match method {
            "complete" => json!({ "model": "gpt", "prompt": "x" }),
            "infill" => json!({ "model": "gpt", "prefix": "x" }),
            "chat" => json!({ "model": "gpt", "messages": [{ "role": "user", "content": "x" }] }),
            "tokenize" => json!({ "model": "gpt", "text": "x" }),
            _ => json!({ "model": "gpt" }),
        };
        call("1", method, params)
    });
    each(&texts.each_ref().map(String::as_str), |_, response| {
        refused(response, json!(1), -32060, "unknown_model");
        assert_eq!(response["error"]["data"]["known"], json!(["embedded"]));
    });
}

/// A model with one broken file gives an error, and the embedded model still works.
#[track_caller]
fn broken(file: &str, break_it: impl Fn(Vec<u8>) -> Vec<u8>, check: impl Fn(&Value)) {
    let folder = model_folder();
    let path = folder.path().join(file);
    let bytes = break_it(fs::read(&path).unwrap());
    fs::write(&path, bytes).unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    for transport in TRANSPORTS {
        let mut client = Client::with(transport, &["--model", "embedded", "--model", folder.path().to_str().unwrap()]);
        for _ in 0..2 {
            let response = client.request(call("1", "complete", json!({ "model": name, "prompt": "x" })));
            assert_eq!(response["id"], 1, "{response}");
            check(&response["error"]["data"]);
        }
        let response = client.request(call("2", "complete", r#"{"prompt":"def add(a, b):","maxTokens":1}"#));
        assert_eq!(response["result"]["text"], " return", "{response}");
    }
}

#[track_caller]
fn names_the_file(file: &str) -> impl Fn(&Value) {
    move |data| {
        assert_eq!((&data["kind"], &data["file"]), (&json!("model_file"), &json!(file)), "{data}");
        assert!(data["field"].as_str().is_some_and(|field| !field.is_empty()), "{data}");
    }
}

#[test]
fn a_corrupt_model_safetensors() {
    broken("model.safetensors", |bytes| bytes[..bytes.len() / 2].to_vec(), names_the_file("model.safetensors"));
    broken("model.safetensors", |_| b"\xff\xff\xff\xff\xff\xff\xff\xffgarbage".to_vec(), names_the_file("model.safetensors"));
    broken("model.safetensors", |_| Vec::new(), names_the_file("model.safetensors"));
}

#[test]
fn weights_of_another_model() {
    let other = |bytes: Vec<u8>| {
        let mut text = bytes;
        // One tensor's name changed in the header, to one of the same length.
        let at = text.windows(18).position(|window| window == b"model.norm.weight\"").expect("a norm at the end");
        text[at + 6..at + 10].copy_from_slice(b"morn");
        text
    };
    broken("model.safetensors", other, |data| {
        assert_eq!(data["kind"], "weights_mismatch", "{data}");
        assert_eq!((&data["missing"], &data["unexpected"]), (&json!(["model.norm.weight"]), &json!(["model.morn.weight"])));
    });
}

#[test]
fn a_corrupt_config_json() {
    broken("config.json", |_| b"{".to_vec(), names_the_file("config.json"));
    let change =
        |from: &'static str, to: &'static str| move |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(from, to).into_bytes();
    broken("config.json", change("\"num_hidden_layers\": 12", "\"num_hidden_layers\": \"12\""), |data| {
        names_the_file("config.json")(data);
        assert_eq!(data["field"], "num_hidden_layers");
    });
    broken("config.json", change("\"num_hidden_layers\": 12", "\"num_hidden_layers\": 4000000000"), names_the_file("config.json"));
    broken("config.json", change("\"model_type\": \"llama\"", "\"model_type\": \"unheard-of\""), |data| {
        names_the_file("config.json")(data);
        assert_eq!(data["field"], "model_type");
    });
}

#[test]
fn a_corrupt_tokenizer_json() {
    broken("tokenizer.json", |bytes| bytes[..bytes.len() / 2].to_vec(), names_the_file("tokenizer.json"));
    broken("tokenizer.json", |_| b"{\"decoder\":[}}}".to_vec(), names_the_file("tokenizer.json"));
}

#[test]
fn a_file_that_is_a_pipe() {
    let fifo = |path: &std::path::Path| {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    };
    for file in ["config.json", "model.safetensors", "pipe.gguf"] {
        let folder = model_folder();
        let path = folder.path().join(file);
        let _ = fs::remove_file(&path);
        fifo(&path);
        let model = if file.ends_with(".gguf") { &*path } else { folder.path() };
        let mut client = Client::with(Transport::Lines, &["--model", model.to_str().unwrap()]);
        let response = client.request(call("1", "complete", r#"{"prompt":"x"}"#));
        names_the_file(file)(&response["error"]["data"]);
        assert_usable(&mut client);
    }
}

#[test]
fn a_model_that_needs_more_memory_than_is_free() {
    let folder = model_folder();
    oversized_model(folder.path());
    for transport in TRANSPORTS {
        let mut client = Client::with(transport, &["--model", folder.path().to_str().unwrap()]);
        let response = client.request(call("1", "complete", r#"{"prompt":"x"}"#));
        refused(&response, json!(1), -32073, "out_of_memory");
        let data = &response["error"]["data"];
        assert!(data["needed"].as_u64() >= Some(1 << 40) && data["free"].as_u64() > Some(0), "{response}");
        assert_usable(&mut client);
    }
}

#[test]
fn a_message_that_is_too_large() {
    let text = call("1", "tokenize", json!({ "text": "x".repeat(MESSAGE_BYTES) }));
    for transport in [Transport::Lines, Transport::Headers] {
        let mut client = Client::new(transport);
        refused(&client.request(&text), Value::Null, -32600, "message_too_large");
        assert_usable(&mut client);
    }
    let server = Server::new();
    let (mut socket, mut other) = (server.connect(), server.connect());
    let _ = socket.send(text.into());
    assert_eq!(receive(&mut socket), Received::Closed(Some(1009)));
    assert_socket_usable(&mut other);
}

fn assert_socket_usable(socket: &mut crate::support::Socket) {
    socket.send(call("\"alive\"", "status", "{}").into()).unwrap();
    assert!(matches!(receive(socket), Received::Message(message) if message["id"] == "alive"));
}

#[test]
fn a_frame_that_announces_a_tebibyte() {
    let mut pipes = StdioClient::new(Transport::Headers, &[]);
    let status = call("1", "status", "{}");
    pipes.write(&pipes.frame(&status));
    assert!(matches!(pipes.receive(), Received::Message(_)));
    let before = pipes.program.resident();
    pipes.write(format!("Content-Length: {}\r\n\r\n", 1u64 << 40).as_bytes());
    let Received::Message(response) = pipes.receive() else { panic!("closed") };
    refused(&response, Value::Null, -32600, "message_too_large");
    for _ in 0..50 {
        pipes.write(&vec![b' '; 1 << 20]);
    }
    assert!(pipes.program.resident() <= before + 4, "{} MiB, then {}", before, pipes.program.resident());

    let server = Server::new();
    let mut other = server.connect();
    assert_socket_usable(&mut other);
    let before = server.program.resident();
    let mut stream = server.raw();
    let mut head = vec![0x81, 0xff];
    head.extend((1u64 << 40).to_be_bytes());
    head.extend([1, 2, 3, 4]);
    stream.write_all(&head).unwrap();
    for _ in 0..50 {
        if stream.write_all(&vec![0; 1 << 20]).is_err() {
            break;
        }
    }
    assert!(server.program.resident() <= before + 4, "{} MiB, then {}", before, server.program.resident());
    closes_with(&mut stream, 1009);
    assert_socket_usable(&mut other);
}

/// Reads an unmasked close frame with this code.
#[track_caller]
fn closes_with(stream: &mut std::net::TcpStream, code: u16) {
    let mut frame = [0; 4];
    stream.read_exact(&mut frame).unwrap();
    assert_eq!((frame[0], frame[1], u16::from_be_bytes([frame[2], frame[3]])), (0x88, 2, code), "{frame:02x?}");
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
    frame.extend(payload);
    frame
}

#[test]
fn bad_utf8() {
    for transport in [Transport::Lines, Transport::Headers] {
        let mut pipes = StdioClient::new(transport, &[]);
        let bad: &[u8] = match transport {
            Transport::Headers => b"Content-Length: 6\r\n\r\n{\"a\xff\":",
            Transport::Lines | Transport::WebSocket => b"{\"a\xff\":1}\n",
        };
        pipes.write(bad);
        let Received::Message(response) = pipes.receive() else { panic!("closed") };
        refused(&response, Value::Null, -32700, "parse_error");
        pipes.write(&pipes.frame(&call("1", "status", "{}")));
        assert!(matches!(pipes.receive(), Received::Message(message) if message["id"] == 1));
    }
    let server = Server::new();
    let mut stream = server.raw();
    stream.write_all(&masked(0x81, b"{\"a\xff\":1}")).unwrap();
    closes_with(&mut stream, 1007);
    assert_socket_usable(&mut server.connect());
}

#[test]
fn frames_against_the_websocket_protocol() {
    let server = Server::new();
    let cases: [(&[u8], u16); 7] = [
        // Unmasked, reserved bits, unknown opcode, continuation without a start, long ping, truncated close, and binary.
        (&[0x81, 2, b'{', b'}'], 1002),
        (&masked(0xC1, b"{}"), 1002),
        (&masked(0x83, b"{}"), 1002),
        (&masked(0x80, b"{}"), 1002),
        (&[&[0x89, 0xFE, 0, 126, 0, 0, 0, 0], &[0; 126][..]].concat(), 1002),
        (&masked(0x88, &[3]), 1002),
        (&masked(0x82, b"{}"), 1003),
    ];
    for (frame, code) in cases {
        let mut stream = server.raw();
        stream.write_all(frame).unwrap();
        closes_with(&mut stream, code);
    }
    assert_socket_usable(&mut server.connect());
}

#[test]
fn a_truncated_frame() {
    for (transport, bytes) in [
        (Transport::Headers, &b"Content-Length: 60\r\n\r\n{\"jsonrpc\":"[..]),
        (Transport::Headers, b"Content-Length: 60\r\n"),
        (Transport::Headers, b"Content-Le"),
        (Transport::Lines, b"{\"jsonrpc\":\"2.0\",\"id\":1,\"meth"),
    ] {
        let mut pipes = StdioClient::new(transport, &[]);
        pipes.write(bytes);
        pipes.close();
        let Received::Message(response) = pipes.receive() else { panic!("closed") };
        refused(&response, Value::Null, -32700, "parse_error");
        assert_eq!(pipes.receive(), Received::Closed(None));
    }
    let server = Server::new();
    let mut other = server.connect();
    let mut stream = server.raw();
    stream.write_all(&masked(0x81, b"{\"jsonrpc\"")[..8]).unwrap();
    drop(stream);
    assert_socket_usable(&mut other);
}

#[test]
fn an_invalid_header() {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"Content-Length: x\r\n\r\n{}", b"Content-Length: -1\r\n\r\n{}", &[b'x'; 10_000]] {
        let mut pipes = StdioClient::new(Transport::Headers, &[]);
        pipes.write(bytes);
        let Received::Message(response) = pipes.receive() else { panic!("closed") };
        refused(&response, Value::Null, -32700, "parse_error");
        assert_eq!(pipes.receive(), Received::Closed(None));
    }
}

#[test]
fn a_port_in_use() {
    let server = Server::new();
    let output = souffleur(&["serve", "--port", &server.address.port().to_string()]).output().unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(&format!("{} is already in use", server.address)), "{stderr}");
    assert_socket_usable(&mut server.connect());
}

#[test]
fn a_full_disk() {
    // stdout is full: the program exits with an error.
    let mut command = souffleur(&["stdio"]);
    command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    let mut program = Program::start(command);
    let mut input = program.child.stdin.take().unwrap();
    input.write_all(format!("{}\n", call("1", "status", "{}")).as_bytes()).unwrap();
    assert!(!program.wait().success());
    let mut stderr = String::new();
    program.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(stderr.contains("can't write to stdout"), "{stderr}");

    // The token file cannot be written: the server does not start, names the file, and leaves none behind.
    let home = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" serve --port 0";
    let program = env!("CARGO_BIN_EXE_souffleur");
    let output = std::process::Command::new("sh").args(["-c", script, program]).env("XDG_RUNTIME_DIR", home.path()).output().unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("can't write the token file") && stderr.contains(".token"), "{stderr}");
    assert_eq!(fs::read_dir(home.path().join("souffleur")).unwrap().count(), 0);
}
