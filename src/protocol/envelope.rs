//! Parses the text of one message into JSON-RPC requests and notifications, each valid or with the error to answer.

use super::error::{ErrorKind, ResponseError};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::{fmt, hash};

/// Longest id in bytes: ids are stored while their calls run, and echoed.
const ID_BYTES_MAX: usize = 256;

/// The id of a call: echoed byte for byte, compared by value (`"a"` equals `"\u0061"`).
#[derive(Clone, Debug)]
pub(crate) struct CallId {
    raw: Box<str>,
    value: IdValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum IdValue {
    Text(Box<str>),
    Integer(Box<str>),
}

impl CallId {
    /// Accepts strings and integers. `null` would answer nobody, and a fraction may not survive the peer's number type.
    pub(crate) fn read(raw: &RawValue) -> Option<Self> {
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

#[derive(Debug)]
pub(crate) enum Message {
    Request { id: CallId, method: String, params: Params },
    Notification { method: String, params: Params },
    Invalid { id: Option<CallId>, error: ResponseError },
}

#[derive(Debug)]
pub(crate) enum Envelope {
    Single(Message),
    Batch(Vec<Message>),
}

/// Parses one message, or a batch of at most `batch_max`.
///
/// # Errors
///
/// What is wrong with the whole text; it gets one response, with id null.
pub(crate) fn read(text: &str, batch_max: usize) -> Result<Envelope, ResponseError> {
    // Check the syntax of the whole text first, so that no member of a broken batch runs.
    serde_json::from_str::<WellFormed>(text).map_err(|error| ResponseError::new(ErrorKind::ParseError, error.to_string()))?;
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => Ok(Envelope::Single(message(text))),
        Some(b'[') => {
            let mut reader = serde_json::Deserializer::from_str(text);
            let (members, count) = BatchMembers { max: batch_max }.deserialize(&mut reader).map_err(invalid_request)?;
            match count {
                0 => Err(ResponseError::new(ErrorKind::InvalidRequest, "the batch is empty")),
                count if count > batch_max => {
                    Err(ResponseError::new(ErrorKind::BatchTooLarge, format!("the batch has {count} calls, {batch_max} are allowed"))
                        .with("limit", batch_max))
                }
                _ => Ok(Envelope::Batch(members.into_iter().map(|member| message(member.get())).collect())),
            }
        }
        _ => Err(ResponseError::new(ErrorKind::InvalidRequest, "a message is an object, or an array of objects")),
    }
}

fn invalid_request(error: serde_json::Error) -> ResponseError {
    ResponseError::new(ErrorKind::InvalidRequest, error.to_string())
}

fn message(text: &str) -> Message {
    match serde_json::from_str::<RawObject<'_>>(text) {
        Ok(object) => request(object),
        Err(_) => Message::Invalid { id: None, error: ResponseError::new(ErrorKind::InvalidRequest, "a request is an object") },
    }
}

fn request(RawObject(members): RawObject<'_>) -> Message {
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
    let call_id = id.and_then(CallId::read);
    let invalid = |why: &str| Message::Invalid { id: call_id.clone(), error: ResponseError::new(ErrorKind::InvalidRequest, why) };
    if id.is_some() && call_id.is_none() {
        return invalid("an id is a string or an integer, of at most 256 bytes");
    }
    if version.is_none_or(|version| version.get() != r#""2.0""#) {
        return invalid(r#"jsonrpc must be "2.0""#);
    }
    let Some(method) = method.and_then(|method| serde_json::from_str::<String>(method.get()).ok()) else {
        return invalid("method must be a string");
    };
    // Some editors write `params: null` where there are none.
    let params = params.filter(|params| params.get() != "null");
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
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(Self)
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
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
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
        reader.deserialize_map(Entries)
    }
}

/// Reads a batch's members: keeps at most `max`, counts all.
struct BatchMembers {
    max: usize,
}

impl<'de> DeserializeSeed<'de> for BatchMembers {
    type Value = (Vec<&'de RawValue>, usize);

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for BatchMembers {
    type Value = (Vec<&'de RawValue>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while members.len() < self.max {
            let Some(member) = seq.next_element()? else { break };
            members.push(member);
        }
        let mut count = members.len();
        while seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((members, count))
    }
}
