//! A cursor over untrusted bytes: the length of every read is checked against the rest of the file.

use crate::models::{Error, Result};
use std::cell::Cell;
use std::rc::Rc;

/// Reads little-endian values in order. Each read takes the name of the field; errors have it and the offset in the file.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    pub(super) file_name: &'a str,
    bytes: &'a [u8],
    /// Length of the whole file, of which `bytes` may be only a prefix.
    file_len: usize,
    offset: usize,
    /// Length of the prefix of the file that a read needed but `bytes` did not have; 0 if no read failed for that reason. Shared
    /// with clones.
    prefix_needed: Rc<Cell<usize>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file_name: &'a str, bytes: &'a [u8], file_len: usize) -> Self {
        Self { file_name, bytes, file_len, offset: 0, prefix_needed: Rc::default() }
    }

    pub(super) fn prefix_needed(&self) -> usize {
        self.prefix_needed.get()
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn left_in_file(&self) -> usize {
        self.file_len - self.offset
    }

    /// Reads the next `count` bytes. `count` comes from the file and may have any value.
    ///
    /// # Errors
    /// `ModelFile` if the file, or the prefix of it in `bytes`, has fewer bytes.
    pub(super) fn take(&mut self, count: u64, field: &str) -> Result<&'a [u8]> {
        if count > self.left_in_file() as u64 {
            return Err(self.error(field, format!("needs {count} bytes, but only {} are left in the file", self.left_in_file())));
        }
        let end = self.offset + count as usize;
        let Some(bytes) = self.bytes.get(self.offset..end) else {
            self.prefix_needed.set(end);
            return Err(self.error(field, "the header is longer than the part of it that was read"));
        };
        self.offset = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        Ok(self.take(N as u64, field)?.try_into().expect("N bytes were taken"))
    }

    pub(super) fn u32(&mut self, field: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u64(&mut self, field: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A GGUF string: a u64 length, then as many bytes.
    pub(super) fn string_bytes(&mut self, field: &str) -> Result<&'a [u8]> {
        let length = self.u64(field)?;
        self.take(length, field)
    }

    pub(super) fn string(&mut self, field: &str) -> Result<&'a str> {
        let start = self.offset;
        let bytes = self.string_bytes(field)?;
        std::str::from_utf8(bytes).map_err(|e| Error::file_at(self.file_name, field, start, e))
    }

    pub(super) fn error(&self, field: &str, reason: impl ToString) -> Error {
        Error::file_at(self.file_name, field, self.offset, reason)
    }
}
