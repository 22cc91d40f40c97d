//! Typed access to metadata by key. Errors have the key, and its offset if the file has the key.

use super::{Array, Gguf, Value};
use crate::models::{Error, Result};

impl<'a> Gguf<'a> {
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.values.get(key).map(|(_, value)| *value)
    }

    pub fn error(&self, key: &str, reason: impl ToString) -> Error {
        match self.values.get(key) {
            Some((at, _)) => Error::file_at(self.file, key, *at, reason),
            None => Error::file(self.file, key, reason),
        }
    }

    pub fn string(&self, key: &str) -> Result<&'a str> {
        self.string_opt(key)?.ok_or_else(|| self.error(key, "missing"))
    }

    pub fn string_opt(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(key, "is not a string")),
            None => Ok(None),
        }
    }

    /// An integer in `1..=max`.
    pub fn size(&self, key: &str, max: usize) -> Result<usize> {
        match self.get(key) {
            Some(Value::Int(size)) if (1..=max as i128).contains(&size) => Ok(size as usize),
            Some(Value::Array(_)) => Err(self.error(key, "is an array; only one number for all layers is supported")),
            Some(_) => Err(self.error(key, format!("is not an integer from 1 to {max}"))),
            None => Err(self.error(key, "missing")),
        }
    }

    pub fn size_or(&self, key: &str, max: usize, default: usize) -> Result<usize> {
        if self.values.contains_key(key) { self.size(key, max) } else { Ok(default) }
    }

    /// A positive, finite number, stored as an integer or a float. `default` if the file lacks the key.
    pub fn positive_or(&self, key: &str, default: f32) -> Result<f32> {
        let number = match self.get(key) {
            Some(Value::Float(number)) => number,
            Some(Value::Int(number)) => number as f64,
            // Not a number, which the check below refuses.
            Some(Value::Bool(_) | Value::String(_) | Value::Array(_)) => f64::NAN,
            None => return Ok(default),
        };
        let narrow = number as f32;
        if narrow.is_finite() && narrow > 0.0 { Ok(narrow) } else { Err(self.error(key, "is not a positive number")) }
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.error(key, "is not a bool")),
            None => Ok(None),
        }
    }

    pub fn array(&self, key: &str) -> Result<Array<'a>> {
        match self.get(key) {
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(self.error(key, "is not an array")),
            None => Err(self.error(key, "missing")),
        }
    }

    /// A token id. Some files have -1 or `u32::MAX` for none.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>> {
        const NONE: i128 = u32::MAX as i128;
        match self.get(key) {
            None | Some(Value::Int(-1 | NONE)) => Ok(None),
            Some(Value::Int(id @ 0..NONE)) => Ok(Some(id as u32)),
            Some(_) => Err(self.error(key, "is not a token id")),
        }
    }
}
