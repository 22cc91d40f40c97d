//! The end-of-sequence token ids that a model's files declare.

use super::weights::{Files, HfFiles, ModelFormat};
use super::{Error, Result};
use serde_json::{Map, Value};

/// GGUF's keys of end tokens: of a sequence (EOS), a turn (EOT) and a message (EOM).
const GGUF_KEYS: [&str; 3] = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// `eos_token_id` of `config.json` and `generation_config.json`, or the end tokens of GGUF's metadata.
///
/// # Errors
/// `ModelFile` if a file is not a JSON object or a GGUF id is not a token id. A JSON id that is not a token
/// id is skipped.
pub(super) fn eos_ids(files: &Files) -> Result<Vec<u32>> {
    match &files.format {
        ModelFormat::HuggingFace(HfFiles { config, generation_config, .. }) => {
            let mut ids = json_ids("config.json", config)?;
            if let Some(generation_config) = generation_config {
                ids.extend(json_ids("generation_config.json", generation_config)?);
            }
            Ok(ids)
        }
        ModelFormat::Gguf => {
            let gguf = files.gguf()?;
            let mut ids = Vec::new();
            for key in GGUF_KEYS {
                ids.extend(gguf.token_id(key)?);
            }
            Ok(ids)
        }
    }
}

/// `eos_token_id` of a JSON file: one number or a list of numbers.
fn json_ids(file: &str, json: &[u8]) -> Result<Vec<u32>> {
    let object: Map<String, Value> = serde_json::from_slice(json).map_err(|e| Error::file(file, "json", e))?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    Ok(match object.get("eos_token_id") {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    })
}
