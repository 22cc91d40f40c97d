//! Metadata values: numbers by value, strings and arrays as views of the file.

use super::reader::Reader;
use crate::models::Result;

/// A metadata value. All integer types are widened to `Int`, both float types to `Float`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Int(i128),
    Float(f64),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
}

/// An array of values of one type, unparsed. Its extent is checked; its elements are checked when they are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

/// Value types of GGUF (`enum gguf_type`).
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of type `kind`; `None` for strings, arrays and unknown types.
fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Parses a value of fixed size; `None` for a bool that is neither 0 nor 1.
fn fixed<'a>(kind: u32, bytes: &[u8]) -> Option<Value<'a>> {
    let mut wide = [0u8; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    let shift = 64 - 8 * bytes.len() as u32;
    let signed = (unsigned << shift) as i64 >> shift;
    Some(match kind {
        0 | 2 | 4 | 10 => Value::Int(unsigned.into()),
        1 | 3 | 5 | 11 => Value::Int(signed.into()),
        6 => Value::Float(f32::from_bits(unsigned as u32).into()),
        12 => Value::Float(f64::from_bits(unsigned)),
        7 if unsigned <= 1 => Value::Bool(unsigned == 1),
        _ => return None,
    })
}

/// Reads a type and a value of that type; `key` is for errors.
pub(super) fn value<'a>(reader: &mut Reader<'a>, key: &str) -> Result<Value<'a>> {
    let kind = reader.u32(key)?;
    match (kind, size(kind)) {
        (_, Some(size)) => {
            let bytes = reader.take(size, key)?;
            fixed(kind, bytes).ok_or_else(|| reader.error(key, format!("{} is neither true nor false", bytes[0])))
        }
        (STRING, _) => Ok(Value::String(reader.string(key)?)),
        (ARRAY, _) => array(reader, key).map(Value::Array),
        _ => Err(reader.error(key, format!("value type {kind}; supported are 0 to 12"))),
    }
}

fn array<'a>(reader: &mut Reader<'a>, key: &str) -> Result<Array<'a>> {
    let kind = reader.u32(key)?;
    let count = reader.u64(key)?;
    let too_many = |reader: &Reader<'_>| {
        reader.error(key, format!("an array of {count} values, but only {} bytes are left in the file", reader.left_in_file()))
    };
    if let Some(size) = size(kind) {
        let bytes = count.checked_mul(size).ok_or_else(|| too_many(reader))?;
        let bytes = reader.take(bytes, key)?;
        return Ok(Array { kind, count: count as usize, bytes });
    }
    if kind != STRING {
        return Err(reader.error(key, format!("an array of value type {kind}; supported are numbers, bools and strings")));
    }
    // A string takes at least eight bytes, so a count that is too large is found before the strings are scanned.
    if count > reader.left_in_file() as u64 / 8 {
        return Err(too_many(reader));
    }
    let mut scan = reader.clone();
    for _ in 0..count {
        scan.string_bytes(key)?;
    }
    let bytes = reader.take((scan.offset() - reader.offset()) as u64, key)?;
    Ok(Array { kind, count: count as usize, bytes })
}

impl<'a> Array<'a> {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The strings; `None` for one that is not UTF-8. An array of another type yields nothing.
    pub fn strings(&self) -> impl Iterator<Item = Option<&'a str>> + use<'a> {
        let mut rest = if self.kind == STRING { self.bytes } else { &[] };
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk::<8>()?;
            let (text, tail) = tail.split_at_checked(u64::from_le_bytes(*length) as usize)?;
            rest = tail;
            Some(std::str::from_utf8(text).ok())
        })
    }

    /// The integers; `None` for each element if the array has another type of numbers.
    pub fn ints(&self) -> impl Iterator<Item = Option<i128>> + use<'a> {
        let kind = self.kind;
        let size = size(kind).unwrap_or(0) as usize;
        let bytes = if size == 0 { &[] } else { self.bytes };
        bytes.chunks_exact(size.max(1)).map(move |bytes| match fixed(kind, bytes) {
            Some(Value::Int(number)) => Some(number),
            _ => None,
        })
    }
}
