//! JSONL: a document a line.

use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Document;
use super::kind::Content;
use crate::error::{Error, Result};
use crate::utf8::{self, Fault};

/// A JSONL line longer than this many bytes is an error: the file most likely has no line ends.
pub(super) const LONGEST_LINE: u64 = 256 << 20;
/// What to do about a line whose field is not there, or is something else.
const OTHER_FIELD: &str = "name the field that holds the text, or leave the file out";

#[derive(Debug)]
pub(super) struct JsonLines {
    path: Arc<Path>,
    content: Content,
    /// Lines read.
    line: u64,
    /// Where the next line begins.
    offset: u64,
}

impl JsonLines {
    pub(super) fn new(path: Arc<Path>, content: Content) -> Self {
        Self {
            path,
            content,
            line: 0,
            offset: 0,
        }
    }

    /// The next text; lines without one are counted in `without_text`.
    pub(super) fn next_document(
        &mut self,
        key: &str,
        without_text: &mut u64,
    ) -> Result<Option<Document>> {
        loop {
            let mut bytes = Vec::new();
            let read = (&mut self.content)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut bytes)
                .map_err(|e| Error::io("read", &self.path, e))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let offset = self.offset;
            self.offset += read as u64;
            if read as u64 == LONGEST_LINE {
                let what = format!("is longer than {LONGEST_LINE} bytes");
                return Err(self.malformed(&what, "write one JSON object a line"));
            }
            // Files with a mark each may have been joined.
            let line = utf8::without_mark(&bytes);
            if line.trim_ascii().is_empty() {
                continue;
            }
            match self.text(line, key, offset)? {
                Some(text) => {
                    let path = self.path.clone();
                    return Ok(Some(Document { path, offset, text }));
                }
                None => *without_text += 1,
            }
        }
    }

    fn text(&self, line: &[u8], key: &str, offset: u64) -> Result<Option<String>> {
        if let Err(e) = std::str::from_utf8(line) {
            let head = if offset == 0 { line } else { &[] };
            return Err(Fault::of(head, offset + e.valid_up_to() as u64).error(&self.path));
        }
        let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|e| {
            self.malformed(
                &format!("is no JSON object: {e}"),
                "correct or remove the line",
            )
        })?;
        match object.remove(key) {
            Some(Value::String(text)) => Ok((!text.is_empty()).then_some(text)),
            Some(Value::Null) => Ok(None),
            Some(_) => {
                let what = format!("has a field {key:?} that is not a string");
                Err(self.malformed(&what, OTHER_FIELD))
            }
            None => {
                let fields: Vec<_> = object.keys().take(8).map(String::as_str).collect();
                let what = format!("has no field {key:?}, but: {}", fields.join(", "));
                Err(self.malformed(&what, OTHER_FIELD))
            }
        }
    }

    fn malformed(&self, what: &str, remedy: &str) -> Error {
        Error::format(&self.path, format!("line {} {what}", self.line), remedy)
    }
}
