//! The GGUF format, versions 2 and 3 (docs/gguf.md of ggml): metadata, tensor infos, then the tensors' data, in one file.
//!
//! Metadata and tensor infos borrow from a private copy of the header, so that checked values cannot change before their use.
//! Tensors borrow from the mapped file. Each size, offset, count and type is checked before use: an invalid file gives an error
//! with the field and its offset, and parsing takes time and memory at most proportional to the file's length.

mod metadata;
mod reader;
mod value;

pub use value::{Array, Value};

use super::TensorType;
use crate::models::{Error, Result};
use reader::Reader;
use std::collections::BTreeMap;

/// Limits of metadata keys: the largest known files have some sixty.
const KEYS_MAX: u64 = 1 << 16;
const KEY_BYTES_MAX: u64 = 1 << 16;
/// Enough for a thousand layers of thirty tensors.
const TENSORS_MAX: u64 = 1 << 16;
/// Bytes of a tensor's name; ggml allows 64.
const NAME_BYTES_MAX: u64 = 1 << 10;
const DIMENSIONS_MAX: u32 = 4;
/// The default of `general.alignment`.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 16;

/// A parsed header. Keys and tensor names are unique; the tensors' data are within the file and do not overlap.
#[derive(Debug)]
pub struct Gguf<'a> {
    /// The file's name, for errors.
    pub file: &'a str,
    values: BTreeMap<&'a str, (usize, Value<'a>)>,
    pub tensors: Vec<TensorInfo<'a>>,
}

/// One tensor. `shape` is in row-major order, outermost dimension first; the file stores the innermost first.
#[derive(Debug)]
pub struct TensorInfo<'a> {
    pub name: &'a str,
    pub shape: Vec<usize>,
    pub tensor_type: TensorType,
    pub data: &'a [u8],
}

/// The result of `Gguf::header_len` for a prefix of a file.
pub enum HeaderLen {
    /// The prefix has the whole header, of this length, or enough of it to find its first error.
    Complete(usize),
    /// The header is longer: a prefix of at least this many bytes has to be read.
    Needs(usize),
}

impl<'a> Gguf<'a> {
    /// Parses a whole file.
    ///
    /// # Errors
    /// `ModelFile` if the header is invalid or a tensor is not inside the file.
    pub fn parse(file: &'a str, bytes: &'a [u8]) -> Result<Self> {
        Self::parse_header(file, bytes, bytes)
    }

    /// Parses `header`, a private copy of the beginning of `bytes`. Tensors are views of `bytes`, everything else is one of
    /// `header`.
    pub fn parse_header(file: &'a str, header: &'a [u8], bytes: &'a [u8]) -> Result<Self> {
        Self::read(&mut Reader::new(file, header, bytes.len()), bytes)
    }

    /// How much of a file has to be copied for `parse_header`.
    pub fn header_len(file: &'a str, header: &'a [u8], bytes: &'a [u8]) -> HeaderLen {
        let mut reader = Reader::new(file, header, bytes.len());
        match Self::read(&mut reader, bytes) {
            Ok(_) => HeaderLen::Complete(reader.offset()),
            Err(_) if reader.prefix_needed() > 0 => HeaderLen::Needs(reader.prefix_needed()),
            // `parse_header` finds the same error.
            Err(_) => HeaderLen::Complete(header.len()),
        }
    }

    fn read(reader: &mut Reader<'a>, bytes: &'a [u8]) -> Result<Self> {
        let file = reader.file_name;
        if reader.take(4, "magic")? != b"GGUF" {
            return Err(Error::file_at(file, "magic", 0, "this is not a GGUF file"));
        }
        match reader.u32("version")? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err(Error::file_at(file, "version", 4, "big-endian files are not supported"));
            }
            version => return Err(Error::file_at(file, "version", 4, format!("{version}; supported are 2 and 3"))),
        }
        let tensors = limited(reader, "tensor count", TENSORS_MAX)?;
        let keys = limited(reader, "metadata count", KEYS_MAX)?;
        let mut values = BTreeMap::new();
        for index in 0..keys {
            let (at, key) = name(reader, || format!("key {index}"), KEY_BYTES_MAX)?;
            let start = reader.offset();
            if values.insert(key, (start, value::value(reader, key)?)).is_some() {
                return Err(Error::file_at(file, key, at, "duplicate key"));
            }
        }
        let mut gguf = Self { file, values, tensors: Vec::new() };
        gguf.tensors = gguf.infos(reader, bytes, tensors)?;
        Ok(gguf)
    }

    fn infos(&self, reader: &mut Reader<'a>, bytes: &'a [u8], count: u64) -> Result<Vec<TensorInfo<'a>>> {
        let alignment = self.alignment()?;
        let mut raw = Vec::new();
        for index in 0..count {
            let (at, name) = name(reader, || format!("name of tensor {index}"), NAME_BYTES_MAX)?;
            raw.push(raw_tensor_info(reader, at, name)?);
        }
        let start = (reader.offset() as u64).next_multiple_of(alignment);
        let infos = raw.iter().map(|info| info.resolve(self.file, bytes, start, alignment)).collect::<Result<Vec<_>>>()?;
        self.check_overlap(&raw, &infos)?;
        Ok(infos)
    }

    fn alignment(&self) -> Result<u64> {
        let key = "general.alignment";
        let alignment = self.size_or(key, ALIGNMENT_MAX as usize, ALIGNMENT as usize)? as u64;
        if alignment.is_power_of_two() { Ok(alignment) } else { Err(self.error(key, format!("{alignment} is not a power of two"))) }
    }

    /// Checks that no two tensors overlap or have one name. Overlapping tensors would let a small file expand to any amount of packed
    /// weights.
    fn check_overlap(&self, raw: &[RawTensorInfo<'a>], infos: &[TensorInfo<'a>]) -> Result<()> {
        let mut order: Vec<usize> = (0..raw.len()).collect();
        order.sort_unstable_by_key(|&i| (raw[i].offset, infos[i].data.len(), i));
        for pair in order.windows(2) {
            let (first, second) = (&raw[pair[0]], &raw[pair[1]]);
            if first.offset + infos[pair[0]].data.len() as u64 > second.offset {
                return Err(Error::file_at(self.file, second.name, second.at, format!("its data overlap those of {}", first.name)));
            }
        }
        let mut names: Vec<_> = raw.iter().map(|info| (info.name, info.at)).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(Error::file_at(self.file, pair[1].0, pair[1].1, "duplicate tensor name")),
            None => Ok(()),
        }
    }
}

/// Reads a count and checks its limit.
fn limited(reader: &mut Reader<'_>, field: &str, max: u64) -> Result<u64> {
    let at = reader.offset();
    let count = reader.u64(field)?;
    if count <= max {
        Ok(count)
    } else {
        Err(Error::file_at(reader.file_name, field, at, format!("{count} is more than the supported {max}")))
    }
}

/// Reads a short string; returns its offset and the string.
fn name<'a>(reader: &mut Reader<'a>, field: impl Fn() -> String, max: u64) -> Result<(usize, &'a str)> {
    let at = reader.offset();
    let mut ahead = reader.clone();
    // The length is checked first, so that no error quotes a name of megabytes.
    match ahead.u64("") {
        Ok(length) if length > max => {
            return Err(reader.error(&field(), format!("{length} bytes, more than the supported {max}")));
        }
        Ok(_) | Err(_) => {}
    }
    reader.string(&field()).map(|name| (at, name))
}

/// A tensor info as stored in the file. `at` is its own offset, `offset` that of its data from the start of the data section.
struct RawTensorInfo<'a> {
    at: usize,
    name: &'a str,
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn raw_tensor_info<'a>(reader: &mut Reader<'a>, at: usize, name: &'a str) -> Result<RawTensorInfo<'a>> {
    let count = reader.u32(name)?;
    if count == 0 || count > DIMENSIONS_MAX {
        return Err(Error::file_at(reader.file_name, name, at, format!("{count} dimensions; supported are 1 to {DIMENSIONS_MAX}")));
    }
    let dimensions = (0..count).map(|_| reader.u64(name)).collect::<Result<Vec<_>>>()?;
    Ok(RawTensorInfo { at, name, dimensions, kind: reader.u32(name)?, offset: reader.u64(name)? })
}

impl<'a> RawTensorInfo<'a> {
    fn resolve(&self, file: &str, bytes: &'a [u8], start: u64, alignment: u64) -> Result<TensorInfo<'a>> {
        let fail = |reason: String| Error::file_at(file, self.name, self.at, reason);
        let unknown = || fail(format!("ggml type {}; supported are {}", self.kind, TensorType::GGML_NAMES));
        let (tensor_type, per_block, block_bytes) = TensorType::from_ggml(self.kind).ok_or_else(unknown)?;
        if !self.dimensions[0].is_multiple_of(per_block as u64) {
            return Err(fail(format!("rows of {} elements are not a multiple of the block size {per_block}", self.dimensions[0])));
        }
        let elements = self.dimensions.iter().try_fold(1u64, |all, &d| all.checked_mul(d));
        let size = elements.and_then(|all| (all / per_block as u64).checked_mul(block_bytes as u64));
        let size = size.filter(|&size| size > 0).ok_or_else(|| fail(format!("shape {:?} is empty or too large", self.dimensions)))?;
        if !self.offset.is_multiple_of(alignment) {
            return Err(fail(format!("offset {} is not aligned to {alignment}", self.offset)));
        }
        let begin = start.checked_add(self.offset);
        let end = begin.and_then(|begin| begin.checked_add(size)).filter(|&end| end <= bytes.len() as u64);
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(fail(format!("{size} bytes at offset {} of the data, but the file has {} bytes", self.offset, bytes.len())));
        };
        let shape = self.dimensions.iter().rev().map(|&d| d as usize).collect();
        Ok(TensorInfo { name: self.name, shape, tensor_type, data: &bytes[begin as usize..end as usize] })
    }
}
