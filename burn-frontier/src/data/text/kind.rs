//! What a file is: text, JSONL, or nothing that can be learned. Its content decides, and a name that says JSONL.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::has_extension;
use super::lines::{JsonLines, LONGEST_LINE};
use super::plain::TextFile;
use super::walk::Found;
use crate::data::indexed::MAGIC;
use crate::error::{Error, Result};
use crate::utf8::{self, Fault};

/// A file from its first byte: what was read to look at it comes first. It may be a pipe, which cannot be rewound.
pub(super) type Content = io::Chain<Cursor<Vec<u8>>, BufReader<File>>;

/// A file that is being read.
#[derive(Debug)]
pub(super) enum Open {
    /// Plain text; it may be JSON all the same.
    Text { file: TextFile, is_json: bool },
    /// JSONL.
    Lines(JsonLines),
}

/// Opens a file, or says why one that lies in a folder is left out. A named one that cannot be used is an error.
pub(super) fn open(found: &Found, key: &str) -> Result<Result<Open, Fault>> {
    let path = found.path.as_path();
    let failed = |e| Error::io("read", path, e);
    let open = || File::open(path).map_err(|e| Error::io("open", path, e));
    if !found.named
        && let Some(fault) = utf8::first_fault(open()?).map_err(failed)?
    {
        return Ok(Err(fault));
    }
    let mut reader = BufReader::new(open()?);
    let mut head = Head::read(&mut reader).map_err(failed)?;
    if found.named {
        refuse_tokens(path, &head.bytes)?;
    }
    let content = Cursor::new(std::mem::take(&mut head.bytes)).chain(reader);
    let shared: Arc<Path> = Arc::from(path);
    let is_lines = has_extension(path, &["jsonl", "ndjson"])
        || head.is_lines() && (found.named || head.has_field(key));
    if is_lines {
        return Ok(Ok(Open::Lines(JsonLines::new(shared, content))));
    }
    let is_json = head.is_lines() || has_extension(path, &["json"]) && head.is_value;
    if found.named && is_json {
        return Err(Error::format(
            path,
            "this is JSON, but not one object a line",
            "write each document as an object on a line of its own, for instance with jq -c '.[]' for an array",
        ));
    }
    let file = TextFile::new(shared, content);
    Ok(Ok(Open::Text { file, is_json }))
}

/// The beginning of a file.
#[derive(Debug, Default)]
struct Head {
    /// All that was read.
    bytes: Vec<u8>,
    /// It begins as a JSON object or array does.
    is_value: bool,
    /// The object that is the first line.
    first: Option<Map<String, Value>>,
    /// What the next line begins with, if there is one.
    next: Option<u8>,
}

impl Head {
    fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let mut head = Self::default();
        // What is no JSON is not searched for line ends: it may have none.
        let begin = first_visible(utf8::without_mark(reader.fill_buf()?));
        head.is_value = matches!(begin, Some(b'{' | b'['));
        if begin != Some(b'{') && begin.is_some() {
            let seen = reader.fill_buf()?.to_vec();
            reader.consume(seen.len());
            head.bytes = seen;
            return Ok(head);
        }
        let Some(first) = head.next_line(reader)? else {
            return Ok(head);
        };
        let line = utf8::without_mark(&head.bytes[first..]);
        head.is_value |= matches!(first_visible(line), Some(b'{' | b'['));
        head.first = serde_json::from_slice(line).ok();
        if head.first.is_some() {
            let next = head.next_line(reader)?;
            head.next = next.and_then(|at| first_visible(utf8::without_mark(&head.bytes[at..])));
        }
        Ok(head)
    }

    /// Reads up to the end of the next line that is not blank, and returns where it begins.
    fn next_line(&mut self, reader: &mut impl BufRead) -> io::Result<Option<usize>> {
        loop {
            let begin = self.bytes.len();
            let read = Read::take(&mut *reader, LONGEST_LINE).read_until(b'\n', &mut self.bytes)?;
            if read == 0 {
                return Ok(None);
            }
            if first_visible(utf8::without_mark(&self.bytes[begin..])).is_some() {
                return Ok(Some(begin));
            }
        }
    }

    /// Whether the file has an object a line, as far as one can see.
    fn is_lines(&self) -> bool {
        self.first.is_some() && matches!(self.next, None | Some(b'{'))
    }

    fn has_field(&self, key: &str) -> bool {
        self.first
            .as_ref()
            .is_some_and(|object| object.contains_key(key))
    }
}

fn first_visible(bytes: &[u8]) -> Option<u8> {
    bytes.trim_ascii_start().first().copied()
}

/// Refuses a file of Megatron's pair: tokens are not text, even if they look like it.
fn refuse_tokens(path: &Path, head: &[u8]) -> Result<()> {
    let begins = |path: &Path| {
        let mut magic = [0; MAGIC.len()];
        let file = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
        file.is_ok() && magic == *MAGIC
    };
    let is_pair = head.starts_with(MAGIC)
        || has_extension(path, &["bin"]) && begins(&path.with_extension("idx"));
    if !is_pair {
        return Ok(());
    }
    Err(Error::format(
        path,
        "this is half of a dataset of tokens, not text",
        format!(
            "name the pair by its prefix, {}",
            path.with_extension("").display()
        ),
    ))
}
