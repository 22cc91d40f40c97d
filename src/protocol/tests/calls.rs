//! Calls in flight: panics, cancels, limits, and a peer that does not read.

use super::*;

#[test]
fn a_panicking_method_gets_an_error_and_other_calls_go_on() {
    serve_default(|mut client| async move {
        client.send(call("1", "silent")).await;
        assert_error(&client.request(call("2", "panic")).await, json!(2), -32603, ErrorKind::Internal);
        client.expect_only_progress_before_ping().await;
    });
}

#[test]
fn a_panicking_method_leaves_the_real_methods_working() {
    let mut methods = Api::registry(runtime_without_model());
    method(&mut methods, "panic", |_, _: NoParams, _| async { panic!("test panic") as Result<(), ResponseError> });
    serve_with(Api::with_methods(methods, Limits::default()), ConnectionOptions::default(), async |mut client: Client| {
        let both = client.request(format!("[{},{}]", call("1", "status"), call("2", "panic"))).await;
        assert_eq!(both[0]["result"]["requestsInFlight"], 0, "{both}");
        assert_error(&both[1], json!(2), -32603, ErrorKind::Internal);
        assert!(!both.to_string().contains("test panic"), "{both}");
        assert_eq!(client.request(call("2", "models/list")).await["result"]["models"][0]["name"], "none");
    });
}

#[test]
fn calls_in_flight_at_the_end_of_the_input_are_cancelled_after_the_linger_time() {
    let options = ConnectionOptions { linger: Duration::from_millis(50), ..ConnectionOptions::default() };
    let reason = serve_with(Api::with_methods(test_methods(), Limits::default()), options, async |mut client: Client| {
        client.send(call("1", "silent")).await;
        client.send(call("2", "endless")).await;
        client.to = mpsc::channel(1).0;
        let mut ended = [client.response().await, client.response().await];
        ended.sort_by_key(|response| response["id"].as_u64());
        assert_error(&ended[0], json!(1), -32800, ErrorKind::Cancelled);
        assert_error(&ended[1], json!(2), -32800, ErrorKind::Cancelled);
        assert_eq!(client.from.recv().await, None);
    });
    assert_eq!(reason, CloseReason::ByPeer);
}

#[test]
fn the_response_to_cancel_follows_the_calls_and_reports_its_tokens() {
    serve_default(|mut client| async move {
        client.send(call("1", "endless")).await;
        for seq in 0..5 {
            assert_eq!(client.next().await["params"], json!({ "token": "t", "value": { "seq": seq } }));
        }
        let ended = client.request(r#"{"jsonrpc":"2.0","id":2,"method":"cancel","params":{"id":1}}"#).await;
        assert_error(&ended, json!(1), -32800, ErrorKind::Cancelled);
        let computed = &ended["error"]["data"]["usage"]["completionTokens"];
        assert_eq!(client.response().await["result"]["completionTokens"], *computed);
        let gone = client.request(r#"{"jsonrpc":"2.0","id":2,"method":"cancel","params":{"id":1}}"#).await;
        assert_error(&gone, json!(2), -32052, ErrorKind::UnknownCall);
        let unnamed = client.request(call("2", "cancel")).await;
        assert_error(&unnamed, json!(2), -32602, ErrorKind::InvalidParams);
        assert_eq!(unnamed["error"]["data"]["parameter"], "id");
        let positional = client.request(r#"{"jsonrpc":"2.0","id":2,"method":"cancel","params":[1]}"#).await;
        assert_error(&positional, json!(2), -32602, ErrorKind::InvalidParams);
    });
}

#[test]
fn at_the_call_limit_calls_are_refused_and_cancels_are_not() {
    let limits = Limits { calls_per_connection: 2, ..Limits::default() };
    with_limits(limits, |mut client| async move {
        client.send(call("1", "silent")).await;
        client.send(call("2", "silent")).await;
        assert_error(&client.request(call("3", "answer")).await, json!(3), -32051, ErrorKind::TooManyCalls);
        assert_error(
            &client.request(r#"{"jsonrpc":"2.0","id":4,"method":"cancel","params":{"id":1}}"#).await,
            json!(1),
            -32800,
            ErrorKind::Cancelled,
        );
        assert_eq!(client.response().await["id"], 4);
        client.expect_only_progress_before_ping().await;
    });
}

#[test]
fn a_peer_that_does_not_read_blocks_only_its_own_calls() {
    let limits = Limits { outbox: 4, ..Limits::default() };
    with_limits(limits, |mut client| async move {
        client.send(call("1", "endless")).await;
        // Its notifications are read. Reading stops at the first message that needs an immediate response.
        for _ in 0..100 {
            client.send(r#"{"jsonrpc":"2.0","method":"note"}"#).await;
        }
        let flood = async {
            loop {
                client.send("not JSON").await;
            }
        };
        timeout(Duration::from_millis(50), flood).await.expect_err("messages are still read from a peer that does not read");
        let (mut seq, mut refusals) = (0, 0);
        while seq < 100 {
            let message = client.next().await;
            match message.get("method") {
                Some(_) => {
                    assert_eq!(message["params"]["value"]["seq"], seq);
                    seq += 1;
                }
                None => {
                    assert_error(&message, Value::Null, -32700, ErrorKind::ParseError);
                    refusals += 1;
                }
            }
        }
        assert!(refusals > 0);
    });
}
