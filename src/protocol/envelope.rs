//! One message's text, read into what it asks. Total: every text is a message, or says what is wrong with it.

use super::error::{Fault, Kind};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::{fmt, hash};

/// Bytes of an id: it is echoed and kept while its call runs.
const ID_BYTES: usize = 256;

/// A peer's id: echoed as it was written, compared by what it means.
#[derive(Clone, Debug)]
pub(crate) struct CallId {
    raw: Box<str>,
    meaning: Meaning,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Meaning {
    Text(Box<str>),
    Integer(Box<str>),
}

impl CallId {
    /// Strings and integers are ids. `null` is not (it would answer nobody), nor is a fraction (it may not come back the same).
    pub(crate) fn read(raw: &RawValue) -> Option<Self> {
        let text = raw.get();
        if text.len() > ID_BYTES {
            return None;
        }
        let meaning = if text.starts_with('"') {
            Meaning::Text(serde_json::from_str(text).ok()?)
        } else if text.strip_prefix('-').unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit()) {
            Meaning::Integer(text.into())
        } else {
            return None;
        };
        Some(Self { raw: text.into(), meaning })
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raw)
    }
}

impl PartialEq for CallId {
    fn eq(&self, other: &Self) -> bool {
        self.meaning == other.meaning
    }
}

impl Eq for CallId {}

impl hash::Hash for CallId {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.meaning.hash(state);
    }
}

pub(crate) type Params = Option<Box<RawValue>>;

#[derive(Debug)]
pub(crate) enum Incoming {
    Request { id: CallId, method: String, params: Params },
    Notification { method: String, params: Params },
    Invalid { id: Option<CallId>, fault: Fault },
}

#[derive(Debug)]
pub(crate) enum Message {
    One(Incoming),
    Batch(Vec<Incoming>),
}

/// Reads one message; an `Err` is answered once, with id null.
pub(crate) fn read(text: &str, batch_max: usize) -> Result<Message, Fault> {
    // First the grammar of the whole message, so that half a message never runs.
    serde_json::from_str::<Sound>(text).map_err(|error| Fault::new(Kind::ParseError, error.to_string()))?;
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => Ok(Message::One(one(text))),
        Some(b'[') => {
            let mut reader = serde_json::Deserializer::from_str(text);
            let (members, count) = Members { max: batch_max }.deserialize(&mut reader).map_err(unreadable)?;
            match count {
                0 => Err(Fault::new(Kind::InvalidRequest, "the batch is empty")),
                count if count > batch_max => {
                    Err(Fault::new(Kind::BatchTooLarge, format!("the batch has {count} calls, {batch_max} are allowed"))
                        .with("limit", batch_max))
                }
                _ => Ok(Message::Batch(members.into_iter().map(|member| one(member.get())).collect())),
            }
        }
        _ => Err(Fault::new(Kind::InvalidRequest, "a message is an object, or an array of objects")),
    }
}

fn unreadable(error: serde_json::Error) -> Fault {
    Fault::new(Kind::InvalidRequest, error.to_string())
}

fn one(text: &str) -> Incoming {
    match serde_json::from_str::<Object<'_>>(text) {
        Ok(object) => request(object),
        Err(_) => Incoming::Invalid { id: None, fault: Fault::new(Kind::InvalidRequest, "a request is an object") },
    }
}

fn request(Object(members): Object<'_>) -> Incoming {
    let [mut version, mut id, mut method, mut params] = [None; 4];
    for (name, value) in members {
        let place = match &*name {
            "jsonrpc" => &mut version,
            "id" => &mut id,
            "method" => &mut method,
            "params" => &mut params,
            _ => continue,
        };
        if place.replace(value).is_some() {
            let fault = Fault::new(Kind::InvalidRequest, format!("{name} is given twice"));
            return Incoming::Invalid { id: None, fault };
        }
    }
    let call_id = id.and_then(CallId::read);
    let invalid = |why: &str| Incoming::Invalid { id: call_id.clone(), fault: Fault::new(Kind::InvalidRequest, why) };
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
        Some(id) => Incoming::Request { id, method, params },
        None => Incoming::Notification { method, params },
    }
}

/// Reads a whole value and keeps nothing of it: its grammar, its depth (serde_json's 128) and the escapes of every string.
struct Sound;

impl<'de> Deserialize<'de> for Sound {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Sound {
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

/// An object's members as they stand, doubles included.
pub(crate) struct Object<'a>(pub(crate) Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object(members))
            }
        }
        reader.deserialize_map(Entries)
    }
}

/// A batch's members, kept up to the limit and counted to the end.
struct Members {
    max: usize,
}

impl<'de> DeserializeSeed<'de> for Members {
    type Value = (Vec<&'de RawValue>, usize);

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Members {
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
