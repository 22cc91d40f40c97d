//! `config.json`, with errors that name the key.

use crate::models::weights::Quantization;
use crate::models::{Error, Result};
use serde_json::{Map, Value};

pub(super) struct Config(Map<String, Value>);

impl Config {
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).map(Self).map_err(|e| Error::file("config.json", "json", e))
    }

    pub(super) fn error(&self, key: &str, reason: impl ToString) -> Error {
        Error::file("config.json", key, reason)
    }

    pub(super) fn text(&self, key: &str) -> Result<&str> {
        self.0.get(key).and_then(Value::as_str).ok_or_else(|| self.error(key, "missing or not a string"))
    }

    /// A size within `1..=max`.
    pub(super) fn size(&self, key: &str, max: usize) -> Result<usize> {
        let value = self.0.get(key).filter(|value| !value.is_null());
        let value = value.ok_or_else(|| self.error(key, "missing"))?;
        let size = value.as_u64().filter(|&size| size >= 1 && size <= max as u64);
        size.map(|size| size as usize).ok_or_else(|| self.error(key, format!("{value} is not a whole number from 1 to {max}")))
    }

    pub(super) fn size_or(&self, key: &str, max: usize, default: usize) -> Result<usize> {
        if self.has(key) { self.size(key, max) } else { Ok(default) }
    }

    pub(super) fn number_or(&self, key: &str, default: f32) -> Result<f32> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => {
                // Checked as f32: a small positive f64 may become zero.
                let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0);
                number.ok_or_else(|| self.error(key, format!("{value} is not a positive number")))
            }
        }
    }

    /// `rope_theta`, at the top level, or in the object `rope_parameters` as transformers 5 writes it.
    pub(super) fn rope_theta(&self) -> Result<f32> {
        self.must_be("rope_scaling", Value::Null)?;
        let theta = self.number_or("rope_theta", 10_000.0)?;
        let Some(Value::Object(parameters)) = self.0.get("rope_parameters") else { return Ok(theta) };
        let parameters = Self(parameters.clone());
        parameters.must_be("rope_type", "default".into())?;
        parameters.number_or("rope_theta", theta)
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(key, format!("{value} is neither true nor false"))),
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| !value.is_null())
    }

    /// Checks a key that would change the arithmetic in a way that is not implemented.
    pub(super) fn must_be(&self, key: &str, expected: Value) -> Result<()> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if *value == expected => Ok(()),
            Some(value) => Err(self.error(key, format!("{value} is not supported; only {expected} is"))),
        }
    }

    #[allow(clippy::type_complexity, reason = "two values that are read from one object")]
    pub(super) fn quantization(&self) -> Result<(Option<Quantization>, Vec<(String, Option<Quantization>)>)> {
        let Some(Value::Object(object)) = self.0.get("quantization") else { return Ok((None, Vec::new())) };
        let whole = quantization(object, "quantization")?;
        let mut overrides = Vec::new();
        for (name, value) in object {
            match value {
                Value::Object(own) => overrides.push((name.clone(), Some(quantization(own, name)?))),
                Value::Bool(false) => overrides.push((name.clone(), None)),
                Value::Bool(true) | Value::Number(_) | Value::String(_) | Value::Null | Value::Array(_) => {}
            }
        }
        Ok((Some(whole), overrides))
    }
}

fn quantization(object: &Map<String, Value>, key: &str) -> Result<Quantization> {
    let number = |field: &str| object.get(field).and_then(Value::as_u64).unwrap_or(0) as usize;
    let (bits, group) = (number("bits"), number("group_size"));
    let mode = object.get("mode").and_then(Value::as_str).unwrap_or("affine");
    let supported = [2, 3, 4, 5, 6, 8].contains(&bits) && [32, 64, 128].contains(&group) && mode == "affine";
    if !supported {
        let reason = format!(
            "{mode} with {bits} bits in groups of {group}; supported is affine with 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128"
        );
        return Err(Error::file("config.json", key, reason));
    }
    Ok(Quantization { bits, group })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_theta_is_read_where_transformers_4_and_5_write_it() {
        let theta = |json: &str| Config::parse(json.as_bytes()).unwrap().rope_theta();
        assert_eq!(theta("{}"), Ok(1e4));
        assert_eq!(theta(r#"{"rope_theta": 500000}"#), Ok(5e5));
        assert_eq!(theta(r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}"#), Ok(1e6));
        assert!(theta(r#"{"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0}}"#).is_err());
        assert!(theta(r#"{"rope_scaling": {"type": "linear"}}"#).is_err());
    }

    #[test]
    fn a_number_must_be_positive_and_finite_as_f32() {
        let number = |json: &str| Config::parse(json.as_bytes()).unwrap().number_or("x", 1.0);
        assert_eq!(number(r#"{"x": 1e-6}"#), Ok(1e-6));
        for wrong in ["1e-300", "1e39", "0", "-1", "true"] {
            assert!(number(&format!(r#"{{"x": {wrong}}}"#)).is_err(), "{wrong}");
        }
    }
}
