//! The connection's loop, over the real loop and a registry of toys.

use super::{Api, Closed, Kind, Malformed, Rules, api::method, call::Call, error::Fault, serve, types::NoParams};
use crate::actors::{ModelSource, Runtime, Usage};
use crate::config::{Config, Isolation, Limits, Model};
use jsonrpsee_core::server::{Extensions, RpcModule};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;

fn toys() -> RpcModule<()> {
    let mut toys = RpcModule::new(());
    let mut add = |name, work: fn(Call) -> futures_util::future::BoxFuture<'static, Result<Value, Fault>>| {
        toys.register_async_method(name, move |_, _, extensions: Extensions| work(extensions.get::<Call>().unwrap().clone())).unwrap();
    };
    add("answer", |_| Box::pin(async { Ok(json!(42)) }));
    add("nothing", |_| Box::pin(async { Ok(Value::Null) }));
    add("panic", |_| Box::pin(async { panic!("as asked") }));
    // Streams until it is cancelled, then says how far it came.
    add("endless", |call| {
        Box::pin(async move {
            let progress = call.progress(serde_json::from_str("\"t\"").unwrap());
            for seq in 0.. {
                let piece = json!({ "seq": seq });
                tokio::select! {
                    biased;
                    () = call.cancelled() => {
                        call.computed(seq);
                        return Err(Fault::cancelled(Usage { completion_tokens: seq, ..Usage::default() }));
                    }
                    () = progress.send(&piece) => tokio::task::yield_now().await,
                }
            }
            unreachable!("seq is endless")
        })
    });
    add("silent", |call| {
        Box::pin(async move {
            call.cancelled().await;
            Err(Fault::cancelled(Usage::default()))
        })
    });
    toys
}

struct Remote {
    to: mpsc::Sender<Result<String, Malformed>>,
    from: mpsc::Receiver<String>,
}

impl Remote {
    async fn send(&mut self, text: impl ToString) {
        self.to.send(Ok(text.to_string())).await.unwrap();
    }
    async fn next(&mut self) -> Value {
        let text = timeout(Duration::from_secs(5), self.from.recv()).await.expect("an answer within five seconds").expect("still open");
        serde_json::from_str(&text).unwrap()
    }
    /// The next message that is no progress.
    async fn answer(&mut self) -> Value {
        loop {
            let message = self.next().await;
            if message.get("method").is_none() {
                return message;
            }
        }
    }
    async fn ask(&mut self, text: impl ToString) -> Value {
        self.send(text).await;
        self.answer().await
    }
    /// Nothing but progress stands between here and the answer to this.
    async fn nothing_before_ping(&mut self) {
        let answer = self.ask(r#"{"jsonrpc":"2.0","id":"ping","method":"answer"}"#).await;
        assert_eq!(answer, json!({ "jsonrpc": "2.0", "id": "ping", "result": 42 }));
    }
}

fn with_limits<F: Future<Output = ()>>(limits: Limits, script: impl FnOnce(Remote) -> F) -> Closed {
    over(Api::over(toys(), limits), Rules { watch_parent: true, ..Rules::default() }, script)
}

fn over<F: Future<Output = ()>>(api: Api, rules: Rules, script: impl FnOnce(Remote) -> F) -> Closed {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (to, incoming) = mpsc::channel(1);
        let (outgoing, from) = mpsc::channel(1);
        let (incoming, outgoing) = (ReceiverStream::new(incoming), PollSender::new(outgoing));
        let script = script(Remote { to, from });
        let (closed, ()) = tokio::join!(serve(incoming, outgoing, &api, rules), script);
        closed
    })
}

/// The real methods' runtime, for what needs no model.
pub(super) fn without_a_model() -> Runtime {
    let model = Model { name: "none".into(), source: ModelSource::Folder("/nowhere".into()) };
    Runtime::start(Config::new(vec![model], Isolation::Thread { embedded: None }).unwrap()).unwrap()
}

fn with<F: Future<Output = ()>>(script: impl FnOnce(Remote) -> F) -> Closed {
    with_limits(Limits::default(), script)
}

fn call(id: &str, method: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}"}}"#)
}

#[track_caller]
fn refused(answer: &Value, id: Value, code: i32, kind: Kind) {
    assert_eq!(answer["id"], id, "{answer}");
    assert_eq!(answer["error"]["code"], code, "{answer}");
    assert_eq!(answer["error"]["data"]["kind"], kind.row().1, "{answer}");
}

#[test]
fn ids_come_back_as_they_were_written() {
    with(|mut remote| async move {
        for id in ["1", "-1", "9007199254740993", "123456789012345678901234567890", "\"\"", "\"a\"", r#""\u0061\/""#] {
            remote.send(call(id, "answer")).await;
            let text = remote.from.recv().await.unwrap();
            assert_eq!(text, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":42}}"#));
        }
        for id in ["null", "1.5", "1e3", "true", "{}", "[1]", &format!("\"{}\"", "x".repeat(300))] {
            refused(&remote.ask(call(id, "answer")).await, Value::Null, -32600, Kind::InvalidRequest);
        }
        let answer = remote.ask(call("7", "nothing")).await;
        assert_eq!(answer, json!({ "jsonrpc": "2.0", "id": 7, "result": null }));
    });
}

#[test]
fn what_is_no_request_gets_one_typed_answer() {
    with(|mut remote| async move {
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
            refused(&remote.ask(text).await, Value::Null, -32700, Kind::ParseError);
        }
        for text in ["1", "null", "\"x\"", "true", "[]", "{}", r#"{"jsonrpc":"2.0","id":1,"id":1,"method":"answer"}"#] {
            refused(&remote.ask(text).await, Value::Null, -32600, Kind::InvalidRequest);
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
            refused(&remote.ask(text).await, json!(1), -32600, Kind::InvalidRequest);
        }
        refused(&remote.ask(call("1", "no/such")).await, json!(1), -32601, Kind::UnknownMethod);
        refused(&remote.ask(call("1", "$/no")).await, json!(1), -32601, Kind::UnknownMethod);
        remote.send(r#"{"jsonrpc":"2.0","method":"$/no"}"#).await;
        remote.send(r#"{"jsonrpc":"2.0","method":"no/such","params":[1]}"#).await;
        remote.nothing_before_ping().await;
    });
}

#[test]
fn malformed_frames_are_answered_and_only_some_end_the_connection() {
    let closed = with(|mut remote| async move {
        remote.to.send(Err(Malformed::TooLarge { limit: 7 })).await.unwrap();
        refused(&remote.answer().await, Value::Null, -32600, Kind::MessageTooLarge);
        remote.to.send(Err(Malformed::NotUtf8)).await.unwrap();
        refused(&remote.answer().await, Value::Null, -32700, Kind::ParseError);
        remote.nothing_before_ping().await;
        remote.to.send(Err(Malformed::BadHeader("no Content-Length".into()))).await.unwrap();
        refused(&remote.answer().await, Value::Null, -32700, Kind::ParseError);
    });
    assert_eq!(closed, Closed::OutOfStep);
}

#[test]
fn a_batch_is_answered_in_one_array() {
    with(|mut remote| async move {
        let note = r#"{"jsonrpc":"2.0","method":"note"}"#;
        let batch = format!("[{},{note},1,{},{}]", call("1", "answer"), call("2", "no"), call("3", "panic"));
        let answer = remote.ask(batch).await;
        assert_eq!(answer[0], json!({ "jsonrpc": "2.0", "id": 1, "result": 42 }));
        refused(&answer[1], Value::Null, -32600, Kind::InvalidRequest);
        refused(&answer[2], json!(2), -32601, Kind::UnknownMethod);
        refused(&answer[3], json!(3), -32603, Kind::Internal);
        assert_eq!(answer.as_array().unwrap().len(), 4);
        remote.send(format!("[{note},{note}]")).await;
        remote.nothing_before_ping().await;
        let many = vec![call("1", "answer"); 33].join(",");
        refused(&remote.ask(format!("[{many}]")).await, Value::Null, -32600, Kind::BatchTooLarge);
        let twice = remote.ask(format!("[{},{}]", call("5", "answer"), call("5", "answer"))).await;
        assert_eq!(twice[0]["result"], 42);
        refused(&twice[1], Value::Null, -32600, Kind::IdInFlight);
        let both =
            remote.ask(format!(r#"[{},{{"jsonrpc":"2.0","id":2,"method":"cancel","params":{{"id":1}}}}]"#, call("1", "silent"))).await;
        refused(&both[0], json!(1), -32800, Kind::Cancelled);
        assert_eq!(both[1]["result"], json!({ "completionTokens": 0 }));
    });
}

#[test]
fn an_id_in_flight_is_refused_without_an_id() {
    with(|mut remote| async move {
        remote.send(call("\"a\"", "silent")).await;
        refused(&remote.ask(call(r#""\u0061""#, "answer")).await, Value::Null, -32600, Kind::IdInFlight);
        refused(&remote.ask(r#"{"jsonrpc":"1.0","id":"a","method":"answer"}"#).await, Value::Null, -32600, Kind::InvalidRequest);
        remote.send(r#"{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":"a"}}"#).await;
        refused(&remote.answer().await, json!("a"), -32800, Kind::Cancelled);
        assert_eq!(remote.ask(call("\"a\"", "answer")).await["result"], 42, "the id is free again");
    });
}

#[test]
fn a_panic_is_answered_and_disturbs_nobody() {
    with(|mut remote| async move {
        remote.send(call("1", "silent")).await;
        refused(&remote.ask(call("2", "panic")).await, json!(2), -32603, Kind::Internal);
        remote.nothing_before_ping().await;
    });
}

#[test]
fn a_panic_among_the_real_methods_disturbs_none_of_them() {
    let mut methods = Api::registry(without_a_model());
    method(&mut methods, "panic", |_, _: NoParams, _| async { panic!("as asked") as Result<(), Fault> });
    over(Api::over(methods, Limits::default()), Rules::default(), async |mut remote: Remote| {
        let both = remote.ask(format!("[{},{}]", call("1", "status"), call("2", "panic"))).await;
        assert_eq!(both[0]["result"]["requestsInFlight"], 0, "{both}");
        refused(&both[1], json!(2), -32603, Kind::Internal);
        assert!(!both.to_string().contains("as asked"), "{both}");
        assert_eq!(remote.ask(call("2", "models/list")).await["result"]["models"][0]["name"], "none");
    });
}

#[test]
fn calls_outlive_the_input_for_a_while_and_are_then_answered_as_cancelled() {
    let rules = Rules { linger: Duration::from_millis(50), ..Rules::default() };
    let closed = over(Api::over(toys(), Limits::default()), rules, async |mut remote: Remote| {
        remote.send(call("1", "silent")).await;
        remote.send(call("2", "endless")).await;
        remote.to = mpsc::channel(1).0;
        let mut ended = [remote.answer().await, remote.answer().await];
        ended.sort_by_key(|answer| answer["id"].as_u64());
        refused(&ended[0], json!(1), -32800, Kind::Cancelled);
        refused(&ended[1], json!(2), -32800, Kind::Cancelled);
        assert_eq!(remote.from.recv().await, None);
    });
    assert_eq!(closed, Closed::ByPeer);
}

#[test]
fn a_cancel_is_answered_after_the_call_with_what_was_computed() {
    with(|mut remote| async move {
        remote.send(call("1", "endless")).await;
        for seq in 0..5 {
            assert_eq!(remote.next().await["params"], json!({ "token": "t", "value": { "seq": seq } }));
        }
        let ended = remote.ask(r#"{"jsonrpc":"2.0","id":2,"method":"cancel","params":{"id":1}}"#).await;
        refused(&ended, json!(1), -32800, Kind::Cancelled);
        let computed = &ended["error"]["data"]["usage"]["completionTokens"];
        assert_eq!(remote.answer().await["result"]["completionTokens"], *computed);
        let gone = remote.ask(r#"{"jsonrpc":"2.0","id":2,"method":"cancel","params":{"id":1}}"#).await;
        refused(&gone, json!(2), -32052, Kind::UnknownCall);
        let unnamed = remote.ask(call("2", "cancel")).await;
        refused(&unnamed, json!(2), -32602, Kind::InvalidParams);
        assert_eq!(unnamed["error"]["data"]["parameter"], "id");
        let positional = remote.ask(r#"{"jsonrpc":"2.0","id":2,"method":"cancel","params":[1]}"#).await;
        refused(&positional, json!(2), -32602, Kind::InvalidParams);
    });
}

#[test]
fn a_full_house_refuses_calls_but_not_cancels() {
    let limits = Limits { calls_per_connection: 2, ..Limits::default() };
    with_limits(limits, |mut remote| async move {
        remote.send(call("1", "silent")).await;
        remote.send(call("2", "silent")).await;
        refused(&remote.ask(call("3", "answer")).await, json!(3), -32051, Kind::TooManyCalls);
        refused(&remote.ask(r#"{"jsonrpc":"2.0","id":4,"method":"cancel","params":{"id":1}}"#).await, json!(1), -32800, Kind::Cancelled);
        assert_eq!(remote.answer().await["id"], 4);
        remote.nothing_before_ping().await;
    });
}

#[test]
fn a_peer_that_does_not_read_stops_only_its_own_calls() {
    let limits = Limits { outbox: 4, ..Limits::default() };
    with_limits(limits, |mut remote| async move {
        remote.send(call("1", "endless")).await;
        // What it sends now is heard, until something must be answered on the spot: there is no room for that.
        for _ in 0..100 {
            remote.send(r#"{"jsonrpc":"2.0","method":"note"}"#).await;
        }
        let flood = async {
            loop {
                remote.send("not JSON").await;
            }
        };
        timeout(Duration::from_millis(50), flood).await.expect_err("a peer that reads nothing can't be refused for ever");
        let (mut seq, mut refusals) = (0, 0);
        while seq < 100 {
            let message = remote.next().await;
            match message.get("method") {
                Some(_) => {
                    assert_eq!(message["params"]["value"]["seq"], seq);
                    seq += 1;
                }
                None => {
                    refused(&message, Value::Null, -32700, Kind::ParseError);
                    refusals += 1;
                }
            }
        }
        assert!(refusals > 0);
    });
}

#[test]
fn lsp_rules_hold_after_a_first_initialize() {
    let closed = with(|mut remote| async move {
        let own = std::process::id();
        let initialize = format!(
            r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{{"processId":{own},"rootUri":null,"capabilities":{{"x":1}}}}}}"#
        );
        assert_eq!(remote.ask(&initialize).await["result"]["serverInfo"]["name"], "souffleur");
        remote.send(r#"{"jsonrpc":"2.0","method":"initialized","params":{}}"#).await;
        refused(&remote.ask(&initialize).await, json!(0), -32600, Kind::InitializeNotFirst);
        refused(&remote.ask(format!("[{}]", call("1", "answer"))).await, Value::Null, -32600, Kind::BatchNotAllowed);
        assert_eq!(remote.ask(call("1", "shutdown")).await, json!({ "jsonrpc": "2.0", "id": 1, "result": null }));
        refused(&remote.ask(call("2", "answer")).await, json!(2), -32600, Kind::AfterShutdown);
        remote.send(r#"{"jsonrpc":"2.0","method":"exit"}"#).await;
        assert_eq!(remote.from.recv().await, None);
    });
    assert_eq!(closed, Closed::Exit { after_shutdown: true });
}

#[test]
fn no_handshake_is_needed_elsewhere() {
    let closed = with(|mut remote| async move {
        remote.nothing_before_ping().await;
        refused(&remote.ask(call("1", "initialize")).await, json!(1), -32600, Kind::InitializeNotFirst);
        assert_eq!(remote.ask(format!("[{}]", call("1", "answer"))).await[0]["result"], 42);
        remote.send(r#"{"jsonrpc":"2.0","method":"exit"}"#).await;
        assert_eq!(remote.from.recv().await, None);
    });
    assert_eq!(closed, Closed::Exit { after_shutdown: false });
}

#[test]
fn a_connection_ends_with_its_parent() {
    let closed = with(|mut remote| async move {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let initialize = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{{"processId":{}}}}}"#, child.id());
        remote.ask(initialize).await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(remote.from.recv().await, None);
    });
    assert_eq!(closed, Closed::ParentGone);
}

#[test]
fn a_peer_that_goes_takes_its_calls_with_it() {
    let closed = with(|mut remote| async move {
        remote.send(call("1", "endless")).await;
        remote.next().await;
        drop(remote);
    });
    assert!(matches!(closed, Closed::ByPeer | Closed::Broken), "{closed:?}");
}
