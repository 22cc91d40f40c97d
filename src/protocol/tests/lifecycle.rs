//! `initialize`, `shutdown` and `exit`, and the other ways a connection closes.

use super::*;

#[test]
fn lsp_rules_apply_after_an_initialize() {
    let reason = serve_default(|mut client| async move {
        let own = std::process::id();
        let initialize = format!(
            r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{{"processId":{own},"rootUri":null,"capabilities":{{"x":1}}}}}}"#
        );
        assert_eq!(client.request(&initialize).await["result"]["serverInfo"]["name"], "souffleur");
        client.send(r#"{"jsonrpc":"2.0","method":"initialized","params":{}}"#).await;
        assert_error(&client.request(&initialize).await, json!(0), -32600, ErrorKind::InitializeNotFirst);
        assert_error(&client.request(format!("[{}]", call("1", "answer"))).await, Value::Null, -32600, ErrorKind::BatchNotAllowed);
        assert_eq!(client.request(call("1", "shutdown")).await, json!({ "jsonrpc": "2.0", "id": 1, "result": null }));
        assert_error(&client.request(call("2", "answer")).await, json!(2), -32600, ErrorKind::AfterShutdown);
        client.send(r#"{"jsonrpc":"2.0","method":"exit"}"#).await;
        assert_eq!(client.from.recv().await, None);
    });
    assert_eq!(reason, CloseReason::Exit { after_shutdown: true });
}

#[test]
fn other_clients_need_no_initialize() {
    let reason = serve_default(|mut client| async move {
        client.expect_only_progress_before_ping().await;
        assert_error(&client.request(call("1", "initialize")).await, json!(1), -32600, ErrorKind::InitializeNotFirst);
        assert_eq!(client.request(format!("[{}]", call("1", "answer"))).await[0]["result"], 42);
        client.send(r#"{"jsonrpc":"2.0","method":"exit"}"#).await;
        assert_eq!(client.from.recv().await, None);
    });
    assert_eq!(reason, CloseReason::Exit { after_shutdown: false });
}

#[test]
fn the_connection_closes_when_the_parent_process_exits() {
    let reason = serve_default(|mut client| async move {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let initialize = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{{"processId":{}}}}}"#, child.id());
        client.request(initialize).await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(client.from.recv().await, None);
    });
    assert_eq!(reason, CloseReason::ParentExited);
}

#[test]
fn calls_end_when_the_peer_disconnects() {
    let reason = serve_default(|mut client| async move {
        client.send(call("1", "endless")).await;
        client.next().await;
        drop(client);
    });
    assert!(matches!(reason, CloseReason::ByPeer | CloseReason::WriteFailed), "{reason:?}");
}
