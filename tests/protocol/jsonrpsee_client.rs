//! A client that others wrote: jsonrpsee's own, which knows nothing of ours.

use crate::support::{Server, TIMEOUT};
use jsonrpsee_core::{
    client::{ClientT, Error, Subscription, SubscriptionClientT},
    params::ObjectParams,
};
use jsonrpsee_ws_client::{HeaderMap, HeaderValue, WsClient, WsClientBuilder};
use serde_json::{Value, json};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, work).await.expect("done in time") })
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
        let asked = params(json!({ "prompt": "def add(a, b):", "maxTokens": 16, "stop": ["\n"], "partialResultToken": "p" }));
        let result: Value = client.request("complete", asked).await.unwrap();
        assert_eq!((&result["text"], &result["finishReason"]), (&json!(""), &json!("stop")));
        let mut text = String::new();
        while text != " return a + b" {
            let piece = progress.next().await.unwrap().unwrap();
            assert_eq!(piece["token"], "p");
            text.push_str(piece["value"]["text"].as_str().unwrap());
            assert!(" return a + b".starts_with(&text), "{text}");
        }
    });
}

#[test]
fn jsonrpsee_cancels_a_stream_and_goes_on() {
    let server = Server::new();
    block_on(async {
        let client = connect(&server).await;
        let mut progress: Subscription<Value> = client.subscribe_to_method("$/progress").await.unwrap();
        let asked = json!({ "prompt": "x", "maxTokens": 2000, "partialResultToken": 1, "logitBias": { "0": -100 } });
        let stop = async {
            progress.next().await.unwrap().unwrap();
            // Its ids count from 0, and the registration above was none.
            client.notification("$/cancelRequest", params(json!({ "id": 0 }))).await.unwrap();
            while progress.next().await.is_some() {}
        };
        let refused = tokio::select! {
            answer = client.request::<Value, _>("complete", params(asked)) => answer.unwrap_err(),
            () = stop => unreachable!("the client is open"),
        };
        let Error::Call(refused) = refused else { panic!("{refused}") };
        let data: Value = serde_json::from_str(refused.data().unwrap().get()).unwrap();
        assert_eq!((refused.code(), &data["kind"]), (-32800, &json!("cancelled")));
        assert!(data["usage"]["completionTokens"].as_u64() < Some(2000), "{data}");
        let result: Value = client.request("complete", params(json!({ "prompt": "def add(a, b):", "maxTokens": 1 }))).await.unwrap();
        assert_eq!(result["text"], " return");
    });
}

#[test]
fn jsonrpsee_survives_an_error() {
    let server = Server::new();
    block_on(async {
        let client = connect(&server).await;
        let refused = client.request::<Value, _>("complete", params(json!({ "prompt": "x", "model": "gpt" }))).await.unwrap_err();
        let Error::Call(refused) = refused else { panic!("{refused}") };
        assert_eq!(refused.code(), -32060);
        let result: Value = client.request("status", params(json!({}))).await.unwrap();
        assert_eq!(result["requestsInFlight"], 0);
    });
}
