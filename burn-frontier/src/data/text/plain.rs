//! A text file, in pieces.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::Document;
use super::kind::Content;
use crate::error::{Error, Result};
use crate::utf8::{self, Fault};

#[derive(Debug)]
pub(super) struct TextFile {
    path: Arc<Path>,
    content: Content,
    /// Where `rest` begins in the file.
    offset: u64,
    /// Read, but behind the last cut.
    rest: Vec<u8>,
}

impl TextFile {
    pub(super) fn new(path: Arc<Path>, content: Content) -> Self {
        Self {
            path,
            content,
            offset: 0,
            rest: Vec::new(),
        }
    }

    /// The next document of at most `longest` bytes; four hold any character, so a cut always exists.
    pub(super) fn next_piece(&mut self, longest: u64) -> Result<Option<Document>> {
        loop {
            let mut bytes = std::mem::take(&mut self.rest);
            let wanted = longest.saturating_sub(bytes.len() as u64);
            let read = (&mut self.content)
                .take(wanted)
                .read_to_end(&mut bytes)
                .map_err(|e| Error::io("read", &self.path, e))?;
            if (read as u64) == wanted {
                let cut = cut_point(&bytes);
                self.rest = bytes.split_off(cut);
            }
            if bytes.is_empty() {
                return Ok(None);
            }
            let begin = self.offset;
            self.offset += bytes.len() as u64;
            let bytes = match begin {
                0 => utf8::without_mark(&bytes),
                _ => &bytes,
            };
            let offset = self.offset - bytes.len() as u64;
            let text = self.text(bytes, offset)?;
            if !text.is_empty() {
                let path = self.path.clone();
                return Ok(Some(Document { path, offset, text }));
            }
        }
    }

    fn text(&self, bytes: &[u8], offset: u64) -> Result<String> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let head = if offset == 0 { bytes } else { &[] };
            Fault::of(head, offset + e.valid_up_to() as u64).error(&self.path)
        })?;
        match text.find('\0') {
            Some(nul) => Err(Fault::Nul(offset + nul as u64).error(&self.path)),
            None => Ok(text.to_string()),
        }
    }
}

/// Where to cut a piece: behind its last line end, else behind its last whole character, or nowhere in what is no text.
fn cut_point(bytes: &[u8]) -> usize {
    if let Some(newline) = bytes.iter().rposition(|&byte| byte == b'\n') {
        return newline + 1;
    }
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() => e.valid_up_to(),
        _ => bytes.len(),
    }
}
