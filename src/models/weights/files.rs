//! The bytes of a model: memory-mapped files, or data built into the binary.

use super::{Gguf, Value};
use crate::models::{Embedded, Error, ModelSource, Result};
use memmap2::Mmap;
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Limit of a JSON file. A config has kilobytes, a tokenizer.json some megabytes.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// The files of one model. Weights are memory-mapped, JSON files are read.
pub struct Files {
    pub format: ModelFormat,
    /// The name of the folder, file or embedded model; the family is detected by it.
    pub name: String,
    weights: Vec<(String, Data)>,
}

/// The format of a model's files.
pub enum ModelFormat {
    /// JSON files beside safetensors weights.
    HuggingFace(HfFiles),
    /// One file with metadata and weights.
    Gguf,
}

/// The JSON files of a Hugging Face model.
pub struct HfFiles {
    pub config: Cow<'static, [u8]>,
    pub generation_config: Option<Vec<u8>>,
    pub tokenizer: Cow<'static, [u8]>,
    pub tokenizer_config: Option<Cow<'static, [u8]>>,
}

enum Data {
    Mapped(Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Files {
    /// # Errors
    /// `ModelFile` if a required file is missing, unreadable or too large; `Unsupported` if this binary has no embedded model.
    pub fn open(source: &ModelSource, embedded: Option<Embedded>) -> Result<Self> {
        match source {
            ModelSource::Embedded => {
                let e = embedded.ok_or_else(|| Error::Unsupported("this binary has no embedded model".into()))?;
                let format = ModelFormat::HuggingFace(HfFiles {
                    config: Cow::Borrowed(e.config),
                    generation_config: None,
                    tokenizer: Cow::Borrowed(e.tokenizer),
                    tokenizer_config: Some(Cow::Borrowed(e.tokenizer_config)),
                });
                Ok(Self { format, name: e.name.into(), weights: vec![("model.safetensors".into(), Data::Static(e.weights))] })
            }
            ModelSource::Folder(folder) => open_folder(folder),
            ModelSource::File(file) => open_file(file),
        }
    }

    /// A GGUF file in memory, for tests and fuzzing.
    pub fn of_gguf(name: &str, bytes: Vec<u8>) -> Self {
        Self { format: ModelFormat::Gguf, name: name.into(), weights: vec![(name.into(), Data::Owned(bytes))] }
    }

    /// File name and bytes of every weight file.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.weights.iter().map(|(name, data)| {
            let bytes: &[u8] = match data {
                Data::Mapped(map) => map,
                Data::Static(bytes) => bytes,
                Data::Owned(bytes) => bytes,
            };
            (name.as_str(), bytes)
        })
    }

    /// Parses the header of a GGUF model. The result borrows from the mapped file, so it is not stored.
    ///
    /// # Errors
    /// `ModelFile` if the header is invalid.
    pub fn gguf(&self) -> Result<Gguf<'_>> {
        let (file, bytes) = self.weights().next().ok_or_else(|| Error::file(&*self.name, "file", "no weights"))?;
        Gguf::parse(file, bytes)
    }

    /// The `general.file_type` of a GGUF file, such as "gguf Q4_K_M"; `None` for other formats and unknown values.
    pub fn gguf_name(&self) -> Option<String> {
        let ModelFormat::Gguf = self.format else { return None };
        let Some(Value::Int(number)) = self.gguf().ok()?.get("general.file_type") else { return None };
        Some(format!("gguf {}", file_type(number)?))
    }

    /// Releases the physical pages of a part of the weights. A later access reads them from the file again.
    pub(super) fn release_pages(&self, part: &[u8]) {
        #[cfg(unix)]
        for (_, data) in &self.weights {
            let Data::Mapped(map) = data else { continue };
            let start = part.as_ptr().addr().wrapping_sub(map.as_ptr().addr());
            if start < map.len() {
                // SAFETY: the mapping is of a file and only read, so a page that is gone comes back with the same bytes.
                // A system that refuses keeps the memory, which is all that it costs.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, part.len()) };
            }
        }
    }

    /// Total size of the weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.weights().map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

fn open_folder(folder: &Path) -> Result<Files> {
    let optional = |name: &str| if folder.join(name).exists() { read(folder, name).map(Some) } else { Ok(None) };
    let format = ModelFormat::HuggingFace(HfFiles {
        config: Cow::Owned(read(folder, "config.json")?),
        generation_config: optional("generation_config.json")?,
        tokenizer: Cow::Owned(read(folder, "tokenizer.json")?),
        tokenizer_config: optional("tokenizer_config.json")?.map(Cow::Owned),
    });
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Files { format, name, weights: map_weights(folder)? })
}

fn open_file(path: &Path) -> Result<Files> {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    let (name, file) = (text(path.file_stem()), text(path.file_name()));
    Ok(Files { format: ModelFormat::Gguf, name, weights: vec![(file.clone(), map(path, &file)?)] })
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let path = folder.join(name);
    let fail = |e: std::io::Error| Error::file(name, path.display().to_string(), e);
    let (mut file, size) = open(&path).map_err(fail)?;
    if size > JSON_BYTES_MAX {
        return Err(Error::file(name, "size", format!("{size} bytes, more than the supported {JSON_BYTES_MAX}")));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

fn map_weights(folder: &Path) -> Result<Vec<(String, Data)>> {
    let fail = |e: std::io::Error| Error::file("*.safetensors", folder.display().to_string(), e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Err(Error::file("*.safetensors", folder.display().to_string(), "no such file in this folder"));
    }
    names.sort();
    names.into_iter().map(|name| Ok((name.clone(), map(&folder.join(&name), &name)?))).collect()
}

/// Opens a file and returns its size. Only regular files are opened: opening a pipe may block, and a device may have no end.
fn open(path: &Path) -> std::io::Result<(File, u64)> {
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    Ok((File::open(path)?, found.len()))
}

fn map(path: &Path, name: &str) -> Result<Data> {
    let (file, _) = open(path).map_err(|e| Error::file(name, "file", e))?;
    // SAFETY: the map is read-only. Someone who shortens the file while it is mapped can end this process
    // by a bus error, which is why model files are opened in a worker process only.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(name, "file", e))?;
    Ok(Data::Mapped(map))
}

/// The names of `enum llama_ftype` of llama.cpp, as stored in `general.file_type`.
fn file_type(number: i128) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        25 => "IQ4_NL",
        32 => "BF16",
        _ => return None,
    })
}
