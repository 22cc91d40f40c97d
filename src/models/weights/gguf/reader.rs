//! A cursor over untrusted bytes: every read is checked against the rest of the file.

use crate::models::{Error, Result};
use std::cell::Cell;
use std::rc::Rc;

/// Errors have the field's name and its offset in the file.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    pub(super) file: &'a str,
    bytes: &'a [u8],
    /// Bytes of the whole file, of which `bytes` may be only the beginning.
    file_len: usize,
    at: usize,
    /// Shared with clones: bytes that it takes to read on, if the file goes on but `bytes` don't; otherwise 0.
    needed: Rc<Cell<usize>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a str, bytes: &'a [u8], file_len: usize) -> Self {
        Self { file, bytes, file_len, at: 0, needed: Rc::default() }
    }

    pub(super) fn needed(&self) -> usize {
        self.needed.get()
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.file_len - self.at
    }

    /// `count` comes from the file and may have any value.
    pub(super) fn take(&mut self, count: u64, field: &str) -> Result<&'a [u8]> {
        if count > self.left() as u64 {
            return Err(self.error(field, format!("{count} bytes, but the file ends after {} more", self.left())));
        }
        let end = self.at + count as usize;
        let Some(bytes) = self.bytes.get(self.at..end) else {
            self.needed.set(end);
            return Err(self.error(field, "the header goes on after what was read of it"));
        };
        self.at = end;
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
        let at = self.at;
        let bytes = self.string_bytes(field)?;
        std::str::from_utf8(bytes).map_err(|e| Error::file_at(self.file, field, at, e))
    }

    pub(super) fn error(&self, field: &str, reason: impl ToString) -> Error {
        Error::file_at(self.file, field, self.at, reason)
    }
}
