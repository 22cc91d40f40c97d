//! Access checks on every route, and on unknown paths: host, origin, token and method.

use crate::support::{Server, read_head};
use souffleur::protocol::transport::http::ROUTES;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;

const ORIGIN: &str = "http://localhost:3000";

/// Sends one request and returns the status, the head and the body of the response.
fn request(server: &Server, method: &str, target: &str, headers: &[(&str, &str)]) -> (u16, String, String) {
    let mut stream = server.dial();
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).unwrap();
    let head = read_head(&mut stream);
    let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{text}{head}"));
    let lower = head.to_ascii_lowercase();
    let length = lower.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (status, head, String::from_utf8(body).unwrap())
}

const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "x3JJHMbDL1EzLkh9GBhXDw=="),
];

#[test]
fn host_origin_and_token_are_checked_on_every_route() {
    let server = Server::with(&["--origin", ORIGIN]);
    let (port, token) = (server.address.port(), &*server.token);
    let allowed = [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("[::1]:{port}")];
    let foreign = [
        "",
        "127.0.0.1",
        "localhost",
        "evil.test",
        "null",
        "0.0.0.0",
        &format!("evil.test:{port}"),
        &format!("0.0.0.0:{port}"),
        &format!("127.1:{port}"),
        &format!("localhost.:{port}"),
        &format!("LOCALHOST:{port}"),
        &format!("127.0.0.1.evil.test:{port}"),
        &format!("a@127.0.0.1:{port}"),
        &format!("127.0.0.1:{}", port ^ 1),
        &format!("\u{ff}:{port}"),
    ]
    .map(str::to_owned);
    let hosts = allowed.iter().map(|host| (host, true)).chain(foreign.iter().map(|host| (host, false)));
    let other = format!("http://127.0.0.1:{port}");
    let origins = [
        (None, true),
        (Some(ORIGIN), true),
        (Some("null"), false),
        (Some(""), false),
        (Some("http://evil.test"), false),
        (Some("http://localhost:3001"), false),
        (Some(&*other), false),
        (Some("file://"), false),
    ];
    let wrong = "0".repeat(64);
    let tokens = [(Some(token), true), (None, false), (Some(&*wrong), false), (Some(&token[1..]), false), (Some(""), false)];
    let paths = ROUTES.iter().map(|route| (route.path, route.needs_token)).chain([("/", true), ("/rpc/", true), ("//health", true)]);
    for (path, needs_token) in paths {
        for (host, host_is_allowed) in hosts.clone() {
            for (origin, origin_is_allowed) in origins {
                for (token, token_is_valid) in tokens {
                    // Not the whole product: the first failed check decides the status.
                    if !host_is_allowed && (!origin_is_allowed || token.is_none()) {
                        continue;
                    }
                    let bearer = token.map(|token| format!("Bearer {token}"));
                    let mut headers = vec![("Host", &**host)];
                    headers.extend(origin.map(|origin| ("Origin", origin)));
                    headers.extend(bearer.as_deref().map(|bearer| ("Authorization", bearer)));
                    headers.extend(UPGRADE);
                    let (status, head, body) = request(&server, "GET", path, &headers);
                    let case = format!("{path} {headers:?}: {head}");
                    if !host_is_allowed || !origin_is_allowed {
                        refused(403, status, &head, &body, &case);
                    } else if needs_token && !token_is_valid {
                        refused(401, status, &head, &body, &case);
                    } else {
                        assert!(![401, 403].contains(&status), "{case}");
                    }
                }
            }
        }
    }
}

/// A refusal has only the two headers that HTTP requires, and no body.
#[track_caller]
fn refused(expected: u16, status: u16, head: &str, body: &str, case: &str) {
    assert_eq!((status, body), (expected, ""), "{case}");
    let mut names: Vec<_> =
        head.split("\r\n").skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name.to_ascii_lowercase()).collect();
    // The response to an upgrade request has a `connection` header as well.
    names.retain(|name| name != "connection");
    names.sort_unstable();
    assert_eq!(names, ["content-length", "date"], "{case}");
}

#[test]
fn no_method_bypasses_the_access_checks() {
    let server = Server::new();
    let host = server.address.to_string();
    for route in &ROUTES {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "FOO"] {
            // The target of CONNECT is a host, not a path.
            let target = if method == "CONNECT" { &*host } else { route.path };
            let (status, head, body) = request(&server, method, target, &[("Host", "evil.test")]);
            refused(403, status, &head, &body, method);
            if route.needs_token {
                let (status, ..) = request(&server, method, target, &[("Host", &host)]);
                assert!([401, 403].contains(&status), "{method} {status}");
            }
        }
    }
}

#[test]
fn the_token_is_accepted_as_a_header_a_subprotocol_or_a_query_parameter() {
    let server = Server::new();
    let (host, token) = (server.address.to_string(), &server.token);
    let with = |target: &str, more: &[(&str, &str)]| request(&server, "GET", target, &[&[("Host", &*host)], &UPGRADE[..], more].concat());
    assert_eq!(with("/rpc", &[("Authorization", &format!("Bearer {token}"))]).0, 101);
    assert_eq!(with(&format!("/rpc?token={token}"), &[]).0, 101);
    let (status, head, _) = with("/rpc", &[("Sec-WebSocket-Protocol", &format!("souffleur, souffleur.token.{token}"))]);
    assert_eq!(status, 101);
    let chosen = head.to_ascii_lowercase();
    assert!(chosen.contains("sec-websocket-protocol: souffleur\r\n"), "{head}");
    assert!(!chosen.contains(&**token) && !chosen.contains("permessage-deflate"), "{head}");
}

#[test]
fn invalid_websocket_handshakes_are_refused() {
    let server = Server::new();
    let (host, bearer) = (server.address.to_string(), format!("Bearer {}", server.token));
    let with =
        |headers: &[(&str, &str)]| request(&server, "GET", "/rpc", &[&[("Host", &*host), ("Authorization", &bearer)], headers].concat());
    let (status, head, _) = with(&[]);
    assert_eq!(status, 426);
    assert!(head.to_ascii_lowercase().contains("sec-websocket-version: 13"), "{head}");
    let without = |name: &str| UPGRADE.into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>();
    assert_eq!(with(&without("Sec-WebSocket-Version")).0, 426);
    assert_eq!(with(&[&without("Sec-WebSocket-Version")[..], &[("Sec-WebSocket-Version", "8")]].concat()).0, 426);
    assert_eq!(with(&without("Upgrade")).0, 426);
    assert_eq!(with(&without("Sec-WebSocket-Key")).0, 400);
    assert_eq!(with(&[&without("Sec-WebSocket-Key")[..], &[("Sec-WebSocket-Key", "short")]].concat()).0, 400);
    assert_eq!(with(&UPGRADE).0, 101);
}

#[test]
fn health_without_a_token_reports_only_the_status() {
    let server = Server::new();
    let (status, _, body) = request(&server, "GET", "/health", &[("Host", &server.address.to_string())]);
    assert_eq!((status, &*body), (200, r#"{"status":"ok"}"#));
}

#[test]
fn the_token_file_is_private_and_removed_with_the_server() {
    let mut server = Server::new();
    let file = server.token_file.clone();
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(file.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(server.token.len(), 64);
    let mut socket = server.connect();
    rustix::process::kill_process(rustix::process::Pid::from_child(&server.program.child), rustix::process::Signal::TERM).unwrap();
    assert_eq!(crate::support::receive(&mut socket), crate::support::Received::Closed(Some(1001)));
    drop(socket);
    assert!(server.program.wait().success());
    assert!(!file.exists());
}

#[test]
fn other_machines_have_access_only_with_beyond_loopback() {
    let output = crate::support::souffleur(&["serve", "--port", "0", "--address", "0.0.0.0"]).output().unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("0.0.0.0:0 is reached from other machines"), "{stderr}");
    let server = Server::with(&["--address", "0.0.0.0", "--beyond-loopback", "--host", "build.lan:7"]);
    let local = format!("127.0.0.1:{}", server.address.port());
    for (host, expected) in [("build.lan:7", 401), (&*local, 401), (&*format!("0.0.0.0:{}", server.address.port()), 403)] {
        assert_eq!(request(&server, "GET", "/rpc", &[("Host", host)]).0, expected, "{host}");
    }
}
