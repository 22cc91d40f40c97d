//! Params from text: named, known, each once, and every complaint with the parameter it is about.

use crate::protocol::{call::ProgressToken, envelope::Object, error::Fault};
use jsonrpsee_types::Params;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

pub(crate) fn read<T: DeserializeOwned>(params: &Params<'_>) -> Result<T, Fault> {
    let text = params.as_str().unwrap_or("{}");
    // A derived struct would read an array by position, and then a parameter's place would be its meaning.
    if !text.starts_with('{') {
        return Err(Fault::parameter("params", "parameters go by name, in an object"));
    }
    serde_json::from_str(text).map_err(|error| complaint(&error, text))
}

fn complaint(error: &serde_json::Error, text: &str) -> Fault {
    let sentence = error.to_string();
    let reason = sentence.rsplit_once(" at line ").map_or(&*sentence, |(reason, _)| reason);
    match field_in(reason).or_else(|| member_at(error, text)) {
        Some(name) => Fault::parameter(&name, reason),
        None => Fault::parameter("params", reason),
    }
}

/// serde names the field itself in these three, and stands elsewhere in the text when it does.
fn field_in(reason: &str) -> Option<String> {
    ["unknown field `", "missing field `", "duplicate field `"].iter().find_map(|start| {
        let (name, _) = reason.strip_prefix(start)?.split_once('`')?;
        Some(name.to_owned())
    })
}

/// The member whose value the reader stood in when it complained.
fn member_at(error: &serde_json::Error, text: &str) -> Option<String> {
    let line_start: usize = text.split_inclusive('\n').take(error.line().checked_sub(1)?).map(str::len).sum();
    let offset = line_start + error.column();
    let Object(members) = serde_json::from_str(text).ok()?;
    // Some complaints are made within the value, others just after it, but none reaches into the next one.
    let begins = |value: &RawValue| value.get().as_ptr().addr() - text.as_ptr().addr() <= offset;
    members.into_iter().take_while(|(_, value)| begins(value)).last().map(|(name, _)| name)
}

impl<'de> Deserialize<'de> for ProgressToken {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(reader)?;
        let text = raw.get();
        let integer = text.strip_prefix('-').unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit());
        if integer || text.starts_with('"') { Ok(Self(raw)) } else { Err(serde::de::Error::custom("a token is a string or an integer")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::types::InfillParams;

    fn named(text: &str) -> String {
        let fault = read::<InfillParams>(&Params::new(Some(text))).unwrap_err();
        fault.data["parameter"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_parameter_of_the_wrong_type_is_named() {
        assert_eq!(named(r#"{"prefix":"a","maxTokens":"7","topK":1}"#), "maxTokens");
        assert_eq!(named("{\n \"prefix\": \"a\",\n \"temperature\": {}, \"topK\":1}"), "temperature");
        assert_eq!(named(r#"{"prefix":7,"maxTokens":7}"#), "prefix");
        assert_eq!(named(r#"{"prefix":"é","files":[{"path":"a","text":3}],"topK":1}"#), "files");
        assert_eq!(named(r#"{"prefix":"a","maxTokens":-1}"#), "maxTokens");
        assert_eq!(named(r#"{"prefix":"a","partialResultToken":1.5}"#), "partialResultToken");
        assert_eq!(named(r#"{"prefix":"a","partialResultToken":[], "topK":1}"#), "partialResultToken");
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
