//! An independent client: jsonrpsee's, with its own WebSocket implementation.

use crate::support::{Server, TIMEOUT};
use jsonrpsee_core::{
    client::{ClientT, Error, Subscription, SubscriptionClientT},
    params::ObjectParams,
};
use jsonrpsee_ws_client::{HeaderMap, HeaderValue, WsClient, WsClientBuilder};
use serde_json::{Value, json};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, future).await.expect("done in time") })
}

async fn connect(server: &Server) -> WsClient {
    let bearer = HeaderValue::from_str(&format!("Bearer {}", server.token)).unwrap();
    let headers = HeaderMap::from_iter([("authorization".parse().unwrap(), bearer)]);
    WsClientBuilder::default().set_headers(headers).build(format!("ws://{}/rpc", server.address)).await.expect("a handshake")
}

fn params(params: Value) -> ObjectParams {
    let mut object = ObjectParams::new();
    for (name, value) in params.as_object().unwrap() {
        object.insert(name, value).unwrap();
    }
    object
}

#[test]
fn jsonrpsee_completes_a_stream() {
    let server = Server::new();
    block_on(async {
        let client = connect(&server).await;
        let mut progress: Subscription<Value> = client.subscribe_to_method("$/progress").await.unwrap();
        let request = params(json!({ "prompt": "def add(a, b):", "maxTokens": 16, "stop": ["\n"], "partialResultToken": "p" }));
        let result: Value = client.request("complete", request).await.unwrap();
        assert_eq!((&result["text"], &result["finishReason"]), (&json!(""), &json!("stop")));
        let mut text = String::new();
        while text != " return a + b" {
            let update = progress.next().await.unwrap().unwrap();
            assert_eq!(update["token"], "p");
            text.push_str(update["value"]["text"].as_str().unwrap());
            assert!(" return a + b".starts_with(&text), "{text}");
        }
    });
}

#[test]
fn jsonrpsee_cancels_a_stream_and_completes_another_request() {
    let server = Server::new();
    block_on(async {
        let client = connect(&server).await;
        let mut progress: Subscription<Value> = client.subscribe_to_method("$/progress").await.unwrap();
        let request = json!({ "prompt": "x", "maxTokens": 2000, "partialResultToken": 1, "logitBias": { "0": -100 } });
        let stop = async {
            progress.next().await.unwrap().unwrap();
            // The client numbers its requests from 0, and the subscription above was not a request.
            client.notification("$/cancelRequest", params(json!({ "id": 0 }))).await.unwrap();
            while progress.next().await.is_some() {}
        };
        let error = tokio::select! {
            result = client.request::<Value, _>("complete", params(request)) => result.unwrap_err(),
            () = stop => unreachable!("the client stays open"),
        };
        let Error::Call(error) = error else { panic!("{error}") };
        let data: Value = serde_json::from_str(error.data().unwrap().get()).unwrap();
        assert_eq!((error.code(), &data["kind"]), (-32800, &json!("cancelled")));
        assert!(data["usage"]["completionTokens"].as_u64() < Some(2000), "{data}");
        let result: Value = client.request("complete", params(json!({ "prompt": "def add(a, b):", "maxTokens": 1 }))).await.unwrap();
        assert_eq!(result["text"], " return");
    });
}

#[test]
fn jsonrpsee_receives_an_error_and_stays_usable() {
    let server = Server::new();
    block_on(async {
        let client = connect(&server).await;
        let error = client.request::<Value, _>("complete", params(json!({ "prompt": "x", "model": "gpt" }))).await.unwrap_err();
        let Error::Call(error) = error else { panic!("{error}") };
        assert_eq!(error.code(), -32060);
        let result: Value = client.request("status", params(json!({}))).await.unwrap();
        assert_eq!(result["requestsInFlight"], 0);
    });
}
