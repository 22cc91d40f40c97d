//! Tests of the connection loop, over in-memory channels and a registry of test methods.

mod calls;
mod envelope;
mod lifecycle;
mod protocol_md;

use super::{
    Api, CloseReason, ConnectionOptions, ErrorKind, FrameError, api::method, call::Call, error::ResponseError, serve, types::NoParams,
};
use crate::actors::{ModelSource, Runtime, Usage};
use crate::config::{Config, Isolation, Limits, Model};
use jsonrpsee_core::server::{Extensions, RpcModule};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;

fn test_methods() -> RpcModule<()> {
    let mut methods = RpcModule::new(());
    let mut add = |name, work: fn(Call) -> futures_util::future::BoxFuture<'static, Result<Value, ResponseError>>| {
        methods.register_async_method(name, move |_, _, extensions: Extensions| work(extensions.get::<Call>().unwrap().clone())).unwrap();
    };
    add("answer", |_| Box::pin(async { Ok(json!(42)) }));
    add("nothing", |_| Box::pin(async { Ok(Value::Null) }));
    add("panic", |_| Box::pin(async { panic!("test panic") }));
    // Streams until it is cancelled, then reports how many parts were sent.
    add("endless", |call| {
        Box::pin(async move {
            let progress = call.progress(serde_json::from_str("\"t\"").unwrap());
            for seq in 0.. {
                let part = json!({ "seq": seq });
                tokio::select! {
                    biased;
                    () = call.cancelled() => {
                        call.record_completion_tokens(seq);
                        return Err(ResponseError::cancelled(Usage { completion_tokens: seq, ..Usage::default() }));
                    }
                    () = progress.send(&part) => tokio::task::yield_now().await,
                }
            }
            unreachable!("seq is endless")
        })
    });
    add("silent", |call| {
        Box::pin(async move {
            call.cancelled().await;
            Err(ResponseError::cancelled(Usage::default()))
        })
    });
    methods
}

struct Client {
    to: mpsc::Sender<Result<String, FrameError>>,
    from: mpsc::Receiver<String>,
}

impl Client {
    async fn send(&mut self, text: impl ToString) {
        self.to.send(Ok(text.to_string())).await.unwrap();
    }
    async fn next(&mut self) -> Value {
        let text = timeout(Duration::from_secs(5), self.from.recv())
            .await
            .expect("no message within five seconds")
            .expect("the connection is closed");
        serde_json::from_str(&text).unwrap()
    }
    /// The next message that is not progress.
    async fn response(&mut self) -> Value {
        loop {
            let message = self.next().await;
            if message.get("method").is_none() {
                return message;
            }
        }
    }
    async fn request(&mut self, text: impl ToString) -> Value {
        self.send(text).await;
        self.response().await
    }
    /// Checks that nothing but progress comes before the response to a new request.
    async fn expect_only_progress_before_ping(&mut self) {
        let response = self.request(r#"{"jsonrpc":"2.0","id":"ping","method":"answer"}"#).await;
        assert_eq!(response, json!({ "jsonrpc": "2.0", "id": "ping", "result": 42 }));
    }
}

fn with_limits<F: Future<Output = ()>>(limits: Limits, script: impl FnOnce(Client) -> F) -> CloseReason {
    serve_with(Api::with_methods(test_methods(), limits), ConnectionOptions { watch_parent: true, ..ConnectionOptions::default() }, script)
}

fn serve_with<F: Future<Output = ()>>(api: Api, options: ConnectionOptions, script: impl FnOnce(Client) -> F) -> CloseReason {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (to, incoming) = mpsc::channel(1);
        let (outgoing, from) = mpsc::channel(1);
        let (incoming, outgoing) = (ReceiverStream::new(incoming), PollSender::new(outgoing));
        let script = script(Client { to, from });
        let (reason, ()) = tokio::join!(serve(incoming, outgoing, &api, options), script);
        reason
    })
}

/// A runtime for the real methods that need no model.
pub(super) fn runtime_without_model() -> Runtime {
    let model = Model { name: "none".into(), source: ModelSource::Folder("/nowhere".into()) };
    Runtime::start(Config::new(vec![model], Isolation::Thread { embedded: None }).unwrap()).unwrap()
}

fn serve_default<F: Future<Output = ()>>(script: impl FnOnce(Client) -> F) -> CloseReason {
    with_limits(Limits::default(), script)
}

fn call(id: &str, method: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}"}}"#)
}

#[track_caller]
fn assert_error(response: &Value, id: Value, code: i32, kind: ErrorKind) {
    assert_eq!(response["id"], id, "{response}");
    assert_eq!(response["error"]["code"], code, "{response}");
    assert_eq!(response["error"]["data"]["kind"], kind.spec().1, "{response}");
}
