//! A network is data: one `DecoderSpec`, one `Decoder` that runs it, and a small file per `model_type`
//! that maps `config.json` and weight names onto it.

mod decoder;
mod llama;

pub use decoder::Decoder;

use super::weights::{Parameter, Quantization};
use super::{Error, Result};
use serde_json::{Map, Value};

/// A decoder-only network, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// `model_type` of `config.json`.
    pub architecture: String,
    pub layers: usize,
    pub width: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_size: usize,
    pub vocabulary: usize,
    /// Tokens of prompt and answer together.
    pub context: usize,
    pub norm_epsilon: f32,
    pub rope_base: f32,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Ids that end a text, as the model's own files have them.
    pub eos: Vec<u32>,
    pub names: Names,
    quantization: Option<Quantization>,
    /// MLX's per-layer overrides by weight name; `None` leaves that weight plain.
    overrides: Vec<(String, Option<Quantization>)>,
}

/// How the weights are called in the files; a layer's names follow `{layers}.{index}.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub embedding: &'static str,
    pub layers: &'static str,
    pub attention_norm: &'static str,
    pub qkv: [&'static str; 3],
    pub output: &'static str,
    pub mlp_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
}

impl DecoderSpec {
    /// Reads `config.json`, which decides the network by its `model_type`.
    pub fn parse(config: &[u8]) -> Result<Self> {
        let value: Map<String, Value> = serde_json::from_slice(config).map_err(|e| Error::file("config.json", "json", e))?;
        let config = Config(&value);
        match config.text("model_type")? {
            "llama" => llama::spec(&config),
            other => Err(Error::file("config.json", "model_type", format!("{other:?} is not supported; supported are llama"))),
        }
    }

    pub fn quantization(&self, base: &str) -> Option<Quantization> {
        self.overrides.iter().find(|(name, _)| name == base).map_or(self.quantization, |(_, q)| *q)
    }

    /// Such as "mlx 4-bit, groups of 64"; `None` for plain weights.
    pub fn quantization_name(&self) -> Option<String> {
        self.quantization.map(|Quantization { bits, group }| format!("mlx {bits}-bit, groups of {group}"))
    }

    /// Keys and values of `tokens` positions, in elements of two bytes.
    pub fn cache_bytes(&self, tokens: usize) -> u64 {
        (self.layers * self.kv_heads * self.head_size * 2 * 2 * tokens) as u64
    }

    /// Everything the network is made of, by name and shape.
    pub fn parameters(&self) -> Vec<Parameter> {
        let vector = |name: String| Parameter::Vector { name, length: self.width };
        let matrix = |base: String, rows, columns| Parameter::Matrix { base, rows, columns };
        let n = &self.names;
        let mut all = vec![matrix(n.embedding.into(), self.vocabulary, self.width), vector(n.norm.into())];
        if !self.tied {
            all.push(matrix(n.head.into(), self.vocabulary, self.width));
        }
        for index in 0..self.layers {
            let at = |name: &str| self.layer_name(index, name);
            let (q, kv) = (self.heads * self.head_size, self.kv_heads * self.head_size);
            all.extend([
                vector(at(n.attention_norm)),
                matrix(at(n.qkv[0]), q, self.width),
                matrix(at(n.qkv[1]), kv, self.width),
                matrix(at(n.qkv[2]), kv, self.width),
                matrix(at(n.output), self.width, q),
                vector(at(n.mlp_norm)),
                matrix(at(n.gate), self.hidden, self.width),
                matrix(at(n.up), self.hidden, self.width),
                matrix(at(n.down), self.width, self.hidden),
            ]);
        }
        all
    }

    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(Parameter::elements).sum()
    }

    fn layer_name(&self, index: usize, name: &str) -> String {
        format!("{}.{index}.{name}", self.names.layers)
    }
}

/// `config.json` with errors that name the key.
struct Config<'a>(&'a Map<String, Value>);

impl Config<'_> {
    fn error(&self, key: &str, reason: impl ToString) -> Error {
        Error::file("config.json", key, reason)
    }

    fn text(&self, key: &str) -> Result<&str> {
        self.0.get(key).and_then(Value::as_str).ok_or_else(|| self.error(key, "missing or not a text"))
    }

    /// A size within `1..=max`.
    fn size(&self, key: &str, max: usize) -> Result<usize> {
        let value = self.0.get(key).filter(|value| !value.is_null());
        let value = value.ok_or_else(|| self.error(key, "missing"))?;
        let size = value.as_u64().filter(|&size| size >= 1 && size <= max as u64);
        size.map(|size| size as usize).ok_or_else(|| self.error(key, format!("{value} is not a whole number from 1 to {max}")))
    }

    fn size_or(&self, key: &str, max: usize, default: usize) -> Result<usize> {
        if self.has(key) { self.size(key, max) } else { Ok(default) }
    }

    fn number_or(&self, key: &str, default: f32) -> Result<f32> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => {
                let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
                number.map(|x| x as f32).ok_or_else(|| self.error(key, format!("{value} is not a positive number")))
            }
        }
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(key, format!("{value} is neither true nor false"))),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| !value.is_null())
    }

    /// A key that would change the arithmetic in a way this network does not know.
    fn must_be(&self, key: &str, expected: Value) -> Result<()> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if *value == expected => Ok(()),
            Some(value) => Err(self.error(key, format!("{value} is not supported; only {expected} is"))),
        }
    }

    /// Ids that end a text: one number or a list.
    fn eos(&self) -> Vec<u32> {
        eos_ids(self.0)
    }

    #[allow(clippy::type_complexity, reason = "two values that are read from one object")]
    fn quantization(&self) -> Result<(Option<Quantization>, Vec<(String, Option<Quantization>)>)> {
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

/// `eos_token_id` of `config.json` or `generation_config.json`: one number or a list.
pub fn eos_ids(object: &Map<String, Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match object.get("eos_token_id") {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
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
