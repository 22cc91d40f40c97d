//! Builds responses as text, under the peer's own id.

use super::{envelope::CallId, error::ResponseError, types::CancelResult};
use serde::Deserialize;
use serde_json::value::RawValue;

pub(super) fn success(id: &CallId, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

pub(super) fn failure(id: Option<&CallId>, error: ResponseError) -> String {
    let error = serde_json::to_string(&error.object()).expect("strings and numbers only");
    raw_failure(id, &error)
}

fn raw_failure(id: Option<&CallId>, error: &str) -> String {
    match id {
        Some(id) => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#),
        None => format!(r#"{{"jsonrpc":"2.0","id":null,"error":{error}}}"#),
    }
}

pub(super) fn cancelled(id: &CallId, completion_tokens: u32) -> String {
    success(id, &serde_json::to_string(&CancelResult { completion_tokens }).expect("a number"))
}

/// Builds a response from one of the registry, whose id is the registry's own.
pub(super) fn from_registry(id: &CallId, response: &str) -> String {
    #[derive(Deserialize)]
    struct Outcome<'a> {
        #[serde(borrow)]
        result: Option<&'a RawValue>,
        #[serde(borrow)]
        error: Option<&'a RawValue>,
    }
    let outcome: Outcome<'_> = serde_json::from_str(response).expect("written by the registry");
    match outcome {
        Outcome { error: Some(error), .. } => raw_failure(Some(id), error.get()),
        // serde reads a result of `null` as `None`.
        Outcome { result, error: None } => success(id, result.map_or("null", RawValue::get)),
    }
}
