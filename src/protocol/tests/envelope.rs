//! Ids, invalid requests, batches and malformed frames.

use super::*;

#[test]
fn ids_are_echoed_byte_for_byte() {
    serve_default(|mut client| async move {
        for id in ["1", "-1", "9007199254740993", "123456789012345678901234567890", "\"\"", "\"a\"", r#""\u0061\/""#] {
            client.send(call(id, "answer")).await;
            let text = client.from.recv().await.unwrap();
            assert_eq!(text, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":42}}"#));
        }
        for id in ["null", "1.5", "1e3", "true", "{}", "[1]", &format!("\"{}\"", "x".repeat(300))] {
            assert_error(&client.request(call(id, "answer")).await, Value::Null, -32600, ErrorKind::InvalidRequest);
        }
        let response = client.request(call("7", "nothing")).await;
        assert_eq!(response, json!({ "jsonrpc": "2.0", "id": 7, "result": null }));
    });
}

#[test]
fn invalid_requests_get_one_response_with_their_kind() {
    serve_default(|mut client| async move {
        let deep = "[".repeat(100_000);
        let closed_deep = format!("{deep}{}", "]".repeat(100_000));
        let in_params = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"answer","params":{{"a":{closed_deep}}}}}"#);
        for text in [
            "",
            "{",
            "}",
            "{]",
            "nul",
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ans",
            &deep,
            &closed_deep,
            &in_params,
            "[1,",
            "{} {}",
            r#"{"jsonrpc":"2.0","id":1,"method":"answer","params":{"text":"\ud800"}}"#,
            r#"{"jsonrpc":"2.0","id":"\udc00","method":"answer"}"#,
            "{\"a\":\"\u{1}\"}",
            "[01]",
            r#"{"jsonrpc":"2.0","id":1,"method":"answer","params":{"temperature":1e400}}"#,
        ] {
            assert_error(&client.request(text).await, Value::Null, -32700, ErrorKind::ParseError);
        }
        for text in ["1", "null", "\"x\"", "true", "[]", "{}", r#"{"jsonrpc":"2.0","id":1,"id":1,"method":"answer"}"#] {
            assert_error(&client.request(text).await, Value::Null, -32600, ErrorKind::InvalidRequest);
        }
        for text in [
            r#"{"id":1,"method":"answer"}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"answer"}"#,
            r#"{"jsonrpc":2.0,"id":1,"method":"answer"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"answer","params":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":7}"#,
        ] {
            assert_error(&client.request(text).await, json!(1), -32600, ErrorKind::InvalidRequest);
        }
        assert_error(&client.request(call("1", "no/such")).await, json!(1), -32601, ErrorKind::UnknownMethod);
        assert_error(&client.request(call("1", "$/no")).await, json!(1), -32601, ErrorKind::UnknownMethod);
        client.send(r#"{"jsonrpc":"2.0","method":"$/no"}"#).await;
        client.send(r#"{"jsonrpc":"2.0","method":"no/such","params":[1]}"#).await;
        client.expect_only_progress_before_ping().await;
    });
}

#[test]
fn frame_errors_get_a_response_and_lost_framing_closes_the_connection() {
    let reason = serve_default(|mut client| async move {
        client.to.send(Err(FrameError::TooLarge { limit: 7 })).await.unwrap();
        assert_error(&client.response().await, Value::Null, -32600, ErrorKind::MessageTooLarge);
        client.to.send(Err(FrameError::NotUtf8)).await.unwrap();
        assert_error(&client.response().await, Value::Null, -32700, ErrorKind::ParseError);
        client.expect_only_progress_before_ping().await;
        client.to.send(Err(FrameError::BadHeader("no Content-Length".into()))).await.unwrap();
        assert_error(&client.response().await, Value::Null, -32700, ErrorKind::ParseError);
    });
    assert_eq!(reason, CloseReason::FramingLost);
}

#[test]
fn a_batch_gets_one_array_of_responses() {
    serve_default(|mut client| async move {
        let note = r#"{"jsonrpc":"2.0","method":"note"}"#;
        let batch = format!("[{},{note},1,{},{}]", call("1", "answer"), call("2", "no"), call("3", "panic"));
        let response = client.request(batch).await;
        assert_eq!(response[0], json!({ "jsonrpc": "2.0", "id": 1, "result": 42 }));
        assert_error(&response[1], Value::Null, -32600, ErrorKind::InvalidRequest);
        assert_error(&response[2], json!(2), -32601, ErrorKind::UnknownMethod);
        assert_error(&response[3], json!(3), -32603, ErrorKind::Internal);
        assert_eq!(response.as_array().unwrap().len(), 4);
        client.send(format!("[{note},{note}]")).await;
        client.expect_only_progress_before_ping().await;
        let many = vec![call("1", "answer"); 33].join(",");
        assert_error(&client.request(format!("[{many}]")).await, Value::Null, -32600, ErrorKind::BatchTooLarge);
        let twice = client.request(format!("[{},{}]", call("5", "answer"), call("5", "answer"))).await;
        assert_eq!(twice[0]["result"], 42);
        assert_error(&twice[1], Value::Null, -32600, ErrorKind::IdInFlight);
        let both =
            client.request(format!(r#"[{},{{"jsonrpc":"2.0","id":2,"method":"cancel","params":{{"id":1}}}}]"#, call("1", "silent"))).await;
        assert_error(&both[0], json!(1), -32800, ErrorKind::Cancelled);
        assert_eq!(both[1]["result"], json!({ "completionTokens": 0 }));
    });
}

#[test]
fn reusing_an_id_in_flight_is_refused_with_id_null() {
    serve_default(|mut client| async move {
        client.send(call("\"a\"", "silent")).await;
        assert_error(&client.request(call(r#""\u0061""#, "answer")).await, Value::Null, -32600, ErrorKind::IdInFlight);
        assert_error(
            &client.request(r#"{"jsonrpc":"1.0","id":"a","method":"answer"}"#).await,
            Value::Null,
            -32600,
            ErrorKind::InvalidRequest,
        );
        client.send(r#"{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":"a"}}"#).await;
        assert_error(&client.response().await, json!("a"), -32800, ErrorKind::Cancelled);
        assert_eq!(client.request(call("\"a\"", "answer")).await["result"], 42, "the id is free again");
    });
}
