//! Parses one text from the peer: a JSON-RPC message, or a batch of them. An invalid message becomes the error to reply with.

use super::error::{ErrorKind, ResponseError};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::{fmt, hash};

/// Longest id in bytes. Limited because ids are stored while their calls run, and echoed.
const ID_BYTES_MAX: usize = 256;
/// The text of the error about an invalid id.
const ID_RULE: &str = "an id is a string or an integer, of at most 256 bytes";

/// The id of a request: echoed byte for byte, compared by value (`"a"` equals `"\u0061"`).
#[derive(Clone, Debug)]
pub(crate) struct CallId {
    raw: Box<str>,
    value: IdValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum IdValue {
    Text(Box<str>),
    /// As its digits, because an id may exceed 64 bits.
    Integer(Box<str>),
}

impl CallId {
    /// Accepts strings and integers. A response with id `null` could not be matched to its request, and a fraction could be
    /// rounded by the peer's number type.
    pub(crate) fn parse(raw: &RawValue) -> Option<Self> {
        let text = raw.get();
        if text.len() > ID_BYTES_MAX {
            return None;
        }
        let value = if text.starts_with('"') {
            IdValue::Text(serde_json::from_str(text).ok()?)
        } else if text.strip_prefix('-').unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit()) {
            IdValue::Integer(text.into())
        } else {
            return None;
        };
        Some(Self { raw: text.into(), value })
    }
}

impl<'de> Deserialize<'de> for CallId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(&raw).ok_or_else(|| serde::de::Error::custom(ID_RULE))
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raw)
    }
}

impl PartialEq for CallId {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for CallId {}

impl hash::Hash for CallId {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.value.hash(state);
    }
}

pub(crate) type Params = Option<Box<RawValue>>;

/// One message from the peer.
#[derive(Debug)]
pub(crate) enum Message {
    Request { id: CallId, method: String, params: Params },
    Notification { method: String, params: Params },
    Invalid { id: Option<CallId>, error: ResponseError },
}

/// The content of one text from the peer.
#[derive(Debug)]
pub(crate) enum Envelope {
    Single(Message),
    Batch(Vec<Message>),
}

/// Parses one message, or a batch of at most `batch_max`.
///
/// # Errors
///
/// The text is not JSON, or neither an object nor a valid batch. The caller sends one response, with id null.
pub(crate) fn parse(text: &str, batch_max: usize) -> Result<Envelope, ResponseError> {
    // Check the syntax of the whole text first, so that no message of a broken batch runs.
    serde_json::from_str::<WellFormed>(text).map_err(|error| ResponseError::new(ErrorKind::ParseError, error.to_string()))?;
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => Ok(Envelope::Single(parse_message(text))),
        Some(b'[') => {
            let mut deserializer = serde_json::Deserializer::from_str(text);
            let (messages, count) = BatchReader { max: batch_max }.deserialize(&mut deserializer).map_err(invalid_request)?;
            match count {
                0 => Err(ResponseError::new(ErrorKind::InvalidRequest, "the batch is empty")),
                count if count > batch_max => Err(ResponseError::new(
                    ErrorKind::BatchTooLarge,
                    format!("the batch has {count} messages, at most {batch_max} are allowed"),
                )
                .with("limit", batch_max)),
                _ => Ok(Envelope::Batch(messages.into_iter().map(|message| parse_message(message.get())).collect())),
            }
        }
        _ => Err(ResponseError::new(ErrorKind::InvalidRequest, "a message is an object, or an array of objects")),
    }
}

fn invalid_request(error: serde_json::Error) -> ResponseError {
    ResponseError::new(ErrorKind::InvalidRequest, error.to_string())
}

fn parse_message(text: &str) -> Message {
    match serde_json::from_str::<RawObject<'_>>(text) {
        Ok(object) => message(object),
        Err(_) => Message::Invalid { id: None, error: ResponseError::new(ErrorKind::InvalidRequest, "a request is an object") },
    }
}

fn message(RawObject(members): RawObject<'_>) -> Message {
    let [mut version, mut id, mut method, mut params] = [None; 4];
    for (name, value) in members {
        let slot = match &*name {
            "jsonrpc" => &mut version,
            "id" => &mut id,
            "method" => &mut method,
            "params" => &mut params,
            _ => continue,
        };
        if slot.replace(value).is_some() {
            let error = ResponseError::new(ErrorKind::InvalidRequest, format!("{name} is given twice"));
            return Message::Invalid { id: None, error };
        }
    }
    let call_id = id.and_then(CallId::parse);
    let invalid = |why: &str| Message::Invalid { id: call_id.clone(), error: ResponseError::new(ErrorKind::InvalidRequest, why) };
    if id.is_some() && call_id.is_none() {
        return invalid(ID_RULE);
    }
    if version.is_none_or(|version| version.get() != r#""2.0""#) {
        return invalid(r#"jsonrpc must be "2.0""#);
    }
    let Some(method) = method.and_then(|method| serde_json::from_str::<String>(method.get()).ok()) else {
        return invalid("method must be a string");
    };
    // Some editors send `params: null` with a method that has no params.
    let params = params.filter(|params| params.get() != "null");
    // An array is valid JSON-RPC. `parse_params` refuses it with `invalid_params`, as it does every other wrong parameter.
    if params.is_some_and(|params| !params.get().starts_with(['{', '['])) {
        return invalid("params must be an object");
    }
    let params = params.map(RawValue::to_owned);
    match call_id {
        Some(id) => Message::Request { id, method, params },
        None => Message::Notification { method, params },
    }
}

/// Checks a whole JSON value and stores nothing: syntax, depth (serde_json's limit of 128) and every string's escapes.
struct WellFormed;

impl<'de> Deserialize<'de> for WellFormed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for WellFormed {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// An object's members as unparsed text, in order, duplicate names included.
pub(crate) struct RawObject<'a>(pub(crate) Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for RawObject<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawObjectVisitor;
        impl<'de> Visitor<'de> for RawObjectVisitor {
            type Value = RawObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(RawObject(members))
            }
        }
        deserializer.deserialize_map(RawObjectVisitor)
    }
}

/// Reads the messages of a batch: keeps at most `max`, counts all.
struct BatchReader {
    max: usize,
}

impl<'de> DeserializeSeed<'de> for BatchReader {
    type Value = (Vec<&'de RawValue>, usize);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for BatchReader {
    type Value = (Vec<&'de RawValue>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut messages = Vec::new();
        while messages.len() < self.max {
            let Some(message) = seq.next_element()? else { break };
            messages.push(message);
        }
        let mut count = messages.len();
        while seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((messages, count))
    }
}
