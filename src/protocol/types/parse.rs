//! Parses the `params` object of a call: members must be known and given once. An error names the parameter, or `params` if it is
//! about the whole object.

use crate::protocol::{
    call::ProgressToken,
    envelope::{CallId, RawObject},
    error::ResponseError,
};
use jsonrpsee_types::Params;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

pub(crate) fn parse_params<T: DeserializeOwned>(params: &Params<'_>) -> Result<T, ResponseError> {
    let text = params.as_str().unwrap_or("{}");
    // serde would accept an array for a struct, by position.
    if !text.starts_with('{') {
        return Err(ResponseError::parameter("params", "params must be an object with named members"));
    }
    serde_json::from_str(text).map_err(|error| param_error(&error, text))
}

fn param_error(error: &serde_json::Error, text: &str) -> ResponseError {
    let message = error.to_string();
    let reason = message.rsplit_once(" at line ").map_or(&*message, |(reason, _)| reason);
    let name = parameter_name(error, reason, text);
    ResponseError::parameter(name.as_deref().unwrap_or("params"), reason)
}

/// The parameter that an error is about: the one whose value contains the error's position, else the one that serde's message
/// names, else the last one before the position. `None` if there is none, or if `text` is not JSON.
fn parameter_name(error: &serde_json::Error, reason: &str, text: &str) -> Option<String> {
    let line_start: usize = text.split_inclusive('\n').take(error.line().checked_sub(1)?).map(str::len).sum();
    let offset = line_start + error.column();
    let RawObject(mut members) = serde_json::from_str(text).ok()?;
    members.retain(|(_, value)| start(value, text) <= offset);
    let (name, value) = members.pop().unzip();
    if value.is_some_and(|value| offset <= start(value, text) + value.get().len()) {
        return name;
    }
    ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|begin| Some(reason.strip_prefix(begin)?.split_once('`')?.0.to_owned()))
        .or(name)
}

/// The byte offset of `value` in `text`, which contains it.
fn start(value: &RawValue, text: &str) -> usize {
    value.get().as_ptr().addr() - text.as_ptr().addr()
}

impl<'de> Deserialize<'de> for ProgressToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        CallId::parse(&raw).map(Self).ok_or_else(|| serde::de::Error::custom("a token is a string or an integer, of at most 256 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::types::InfillParams;

    fn named(text: &str) -> String {
        let error = parse_params::<InfillParams>(&Params::new(Some(text))).unwrap_err();
        error.data["parameter"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_parameter_of_the_wrong_type_is_named() {
        assert_eq!(named(r#"{"prefix":"a","maxTokens":"7","topK":1}"#), "maxTokens");
        assert_eq!(named("{\n \"prefix\": \"a\",\n \"temperature\": {}, \"topK\":1}"), "temperature");
        assert_eq!(named(r#"{"prefix":7,"maxTokens":7}"#), "prefix");
        assert_eq!(named(r#"{"prefix":"é","files":[{"path":"a","text":3}],"topK":1}"#), "files");
        assert_eq!(named(r#"{"prefix":"a","files":[{"path":"a","test":"b"}]}"#), "files");
        assert_eq!(named(r#"{"prefix":"a","files":[{"path":"a"}]}"#), "files");
        assert_eq!(named(r#"{"prefix":"a","maxTokens":-1}"#), "maxTokens");
        assert_eq!(named(r#"{"prefix":"a","partialResultToken":1.5}"#), "partialResultToken");
        assert_eq!(named(r#"{"prefix":"a","partialResultToken":[], "topK":1}"#), "partialResultToken");
        assert_eq!(named(&format!(r#"{{"prefix":"a","partialResultToken":"{}"}}"#, "x".repeat(300))), "partialResultToken");
        assert_eq!(named(r#"{"prefix":"a","order":"psm"}"#), "order");
        assert_eq!(named(r#"{"prefix":"a","order":"psm", "topK":1}"#), "order");
    }

    #[test]
    fn unknown_missing_and_double_parameters_are_named() {
        assert_eq!(named(r#"{"prefix":"a","temprature":1}"#), "temprature");
        assert_eq!(named(r#"{"suffix":"a"}"#), "prefix");
        assert_eq!(named(r#"{"prefix":"a","prefix":"b"}"#), "prefix");
        assert_eq!(named(r#"["a"]"#), "params");
    }
}
