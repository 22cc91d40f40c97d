//! The bytes of a model: memory-mapped files, or data built into the binary.

use super::{Gguf, HeaderLen, Value};
use crate::models::{Embedded, Error, ModelSource, Result};
use memmap2::Mmap;
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Limit of a JSON file. A config has kilobytes, a tokenizer.json some megabytes.
const JSON_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a GGUF file that are read first: enough for the whole header with a vocabulary of 150,000 tokens and its merges.
const GGUF_HEADER_BYTES: usize = 8 << 20;
/// Headers with the largest known vocabularies have some 30 MB.
const GGUF_HEADER_BYTES_MAX: usize = 256 << 20;

/// The files of one model. Weights are memory-mapped, JSON files are read.
pub struct Files {
    pub format: ModelFormat,
    /// The name of the folder, file or embedded model; the family is detected by it.
    pub name: String,
    weights: Vec<(String, Data)>,
    /// A copy of a mapped GGUF file's header.
    gguf_header: Option<Vec<u8>>,
}

/// The format of a model's files.
pub enum ModelFormat {
    /// JSON files and safetensors weights in one folder.
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
                Ok(Self {
                    format,
                    name: e.name.into(),
                    weights: vec![("model.safetensors".into(), Data::Static(e.weights))],
                    gguf_header: None,
                })
            }
            ModelSource::Folder(folder) => open_folder(folder),
            ModelSource::File(file) => open_file(file),
        }
    }

    /// A GGUF file in memory, for tests and fuzzing.
    pub fn of_gguf(name: &str, bytes: Vec<u8>) -> Self {
        Self { format: ModelFormat::Gguf, name: name.into(), weights: vec![(name.into(), Data::Owned(bytes))], gguf_header: None }
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

    /// Parses the header of a GGUF model.
    ///
    /// # Errors
    /// `ModelFile` if the header is invalid.
    pub fn gguf(&self) -> Result<Gguf<'_>> {
        let (file, bytes) = self.weights().next().ok_or_else(|| Error::file(&*self.name, "file", "no weights"))?;
        Gguf::parse_header(file, self.gguf_header.as_deref().unwrap_or(bytes), bytes)
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
                // SAFETY: the mapping is of a file and only read, so the kernel reads a released page again when it is accessed.
                // It may then have other bytes, if the file was written to in between (see `map`). After an error the memory stays in use.
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
    Ok(Files { format, name, weights: map_weights(folder)?, gguf_header: None })
}

fn open_file(path: &Path) -> Result<Files> {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    let (name, file) = (text(path.file_stem()), text(path.file_name()));
    let fail = |e: std::io::Error| Error::file(&*file, "file", e);
    let (handle, _) = open(path).map_err(fail)?;
    let map = map(&handle).map_err(fail)?;
    let gguf_header = Some(copy_header(handle, &file, &map)?);
    Ok(Files { format: ModelFormat::Gguf, name, weights: vec![(file, Data::Mapped(map))], gguf_header })
}

/// Copies the header of a GGUF file, whose length is not known before it is parsed.
fn copy_header(mut handle: File, file: &str, map: &[u8]) -> Result<Vec<u8>> {
    let mut header = Vec::new();
    let mut wanted = GGUF_HEADER_BYTES;
    loop {
        wanted = wanted.min(map.len());
        let missing = (wanted - header.len()) as u64;
        handle.by_ref().take(missing).read_to_end(&mut header).map_err(|e| Error::file(file, "header", e))?;
        if header.len() < wanted {
            return Err(Error::file(file, "header", "the file was truncated while it was read"));
        }
        match Gguf::header_len(file, &header, map) {
            HeaderLen::Complete(length) => {
                header.truncate(length);
                header.shrink_to_fit();
                return Ok(header);
            }
            HeaderLen::Needs(bytes) if bytes > GGUF_HEADER_BYTES_MAX => {
                let reason = format!("at least {bytes} bytes, more than the {GGUF_HEADER_BYTES_MAX} that are supported");
                return Err(Error::file(file, "header", reason));
            }
            HeaderLen::Needs(bytes) => wanted = bytes.max(2 * header.len()),
        }
    }
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
    let open_map = |name: String| {
        let map = open(&folder.join(&name)).and_then(|(file, _)| map(&file)).map_err(|e| Error::file(&*name, "file", e))?;
        Ok((name, Data::Mapped(map)))
    };
    names.into_iter().map(open_map).collect()
}

/// Opens a file and returns its size. Only regular files are opened: opening a pipe may block, and a device may have no end.
fn open(path: &Path) -> std::io::Result<(File, u64)> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    Ok((File::open(path)?, metadata.len()))
}

fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: `&[u8]` promises bytes that don't change, and another process can break that promise: no system call prevents
    // it. What follows if the file is
    // - written to: tensors may have any values, and two reads of one byte may differ. Tensor data is only ever read as
    //   integers and floats, for which every bit pattern is valid. It is copied into packed weights before it is used, and no
    //   length, offset or index is ever read from it. Those come from headers. GGUF's is a private copy (`copy_header`).
    //   A safetensors header is parsed once, by its crate, into values of its own that are then checked. Not guarded is a
    //   write in the midst of that parse, which could change text between its UTF-8 check and its use.
    // - truncated: the next access beyond its end raises SIGBUS, which ends this process. That is why model files are opened
    //   in a worker process, which its parent process restarts, and why `Isolation::Thread` is for trusted files only.
    // The compiler may in theory assume that the bytes stay the same; nothing here compares two reads of one byte.
    unsafe { Mmap::map(file) }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one key, with an array of this type, count and bytes.
    fn gguf(element: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend([0u64, 1, 1].iter().flat_map(|x| x.to_le_bytes()));
        file.push(b'k');
        file.extend([9, element].iter().flat_map(|x| x.to_le_bytes()));
        file.extend(count.to_le_bytes());
        file.extend(bytes);
        file
    }

    #[test]
    fn a_gguf_header_is_a_copy_that_writers_of_the_file_do_not_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        std::fs::write(&path, gguf(0, 3, &[1, 2, 3])).unwrap();
        let files = Files::open(&ModelSource::File(path.clone()), None).unwrap();
        // The same file, of the same length.
        std::fs::write(&path, [0xff; 52]).unwrap();
        assert_eq!(files.gguf().unwrap().array("k").unwrap().len(), 3);
    }

    #[test]
    fn a_gguf_header_of_any_supported_length_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let open = || Files::open(&ModelSource::File(path.clone()), None);
        let strings = 1 << 20;
        let string = [&25u64.to_le_bytes()[..], &[b'x'; 25]].concat();
        for (element, count, bytes) in [(0, 20 << 20, vec![1; 20 << 20]), (8, strings, string.repeat(strings as usize))] {
            let mut file = gguf(element, count, &bytes);
            let header = file.len();
            file.extend([0; 100]);
            std::fs::write(&path, &file).unwrap();
            let files = open().unwrap();
            assert_eq!(files.gguf_header.as_deref(), Some(&file[..header]));
            assert_eq!(files.gguf().unwrap().array("k").unwrap().len() as u64, count);
        }
        std::fs::write(&path, gguf(0, GGUF_HEADER_BYTES_MAX as u64, &[])).unwrap();
        assert!(open().unwrap().gguf().is_err(), "the file ends before the array does");
        File::options().write(true).open(&path).unwrap().set_len(2 * GGUF_HEADER_BYTES_MAX as u64).unwrap();
        assert!(open().is_err_and(|error| error.to_string().contains("are supported")));
    }

    #[test]
    fn a_prefix_of_a_gguf_file_reports_the_header_length_that_it_needs() {
        let file = include_bytes!("../../../fuzz/seeds/llama.gguf");
        let HeaderLen::Complete(length) = Gguf::header_len("a.gguf", file, file) else { panic!("the whole file was given") };
        assert!(length < file.len());
        for read in (0..length).step_by(7) {
            match Gguf::header_len("a.gguf", &file[..read], file) {
                HeaderLen::Needs(bytes) => assert!(read < bytes && bytes <= length, "{bytes} after {read}"),
                HeaderLen::Complete(_) => panic!("complete after {read} of {length}"),
            }
        }
        assert!(matches!(Gguf::header_len("a.gguf", &file[..length], file), HeaderLen::Complete(end) if end == length));
    }
}
