//! Documents from files, folders and JSONL, one at a time, in an order that does not depend on the machine.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// A JSONL line longer than this many bytes is an error: the file most likely has no line ends.
const LONGEST_LINE: u64 = 256 << 20;

/// Which files of a folder are read, and how.
#[derive(Debug, Clone)]
pub struct Filter {
    /// File name extensions without the dot; empty means every file. Files that are named one by one always pass.
    pub extensions: Vec<String>,
    /// The field of a JSONL line that holds the text.
    pub key: String,
    /// A text file of more bytes becomes several documents, cut at line ends: memory stays bounded, and a corpus of
    /// one file can be split into train and validation. JSONL documents are never cut.
    pub longest: u64,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            extensions: Vec::new(),
            key: "text".into(),
            longest: 64 << 10,
        }
    }
}

/// One text, and where it was found.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file.
    pub path: Arc<Path>,
    /// Its first byte in the file.
    pub offset: u64,
    /// The text; never empty.
    pub text: String,
}

/// The documents of files and folders, read as the iterator advances; see [`documents`].
#[derive(Debug)]
pub struct Documents {
    walk: Walk,
    filter: Filter,
    open: Option<Open>,
    files: u64,
    skipped: u64,
}

/// The documents of `paths`, in their order; a folder's entries are taken in the order of their names, recursively.
///
/// A `.jsonl` or `.ndjson` file has one document a line; any other file is one document if it is UTF-8 text
/// without NUL, and is skipped and counted otherwise. Empty texts are no documents. In folders, hidden names,
/// linked folders and folders marked with `CACHEDIR.TAG` (build outputs) are left out.
///
/// # Errors
/// An item is an error where a file cannot be read, a JSONL line is malformed (file and line are named), or a
/// long text file stops being UTF-8 half-way.
pub fn documents(paths: &[PathBuf], filter: &Filter) -> Documents {
    Documents {
        walk: Walk::new(paths, &filter.extensions),
        filter: filter.clone(),
        open: None,
        files: 0,
        skipped: 0,
    }
}

impl Documents {
    /// Files read so far.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// Files passed over so far because they are not text.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn advance(&mut self) -> Result<Option<Document>> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(path) = self.walk.next().transpose()? else {
                    return Ok(None);
                };
                self.open = Some(Open::new(&path)?);
                self.files += 1;
                continue;
            };
            let found = match open {
                Open::Text(file) => file.next_piece(self.filter.longest.max(4))?,
                Open::Lines(file) => file.next_document(&self.filter.key)?,
            };
            match found {
                Found::Document(document) => return Ok(Some(document)),
                Found::End => self.open = None,
                Found::NotText => {
                    self.open = None;
                    self.files -= 1;
                    self.skipped += 1;
                }
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.advance().transpose();
        if let Some(Err(_)) = item {
            // Whoever goes on after an error goes on with the next file.
            self.open = None;
        }
        item
    }
}

enum Found {
    Document(Document),
    End,
    NotText,
}

#[derive(Debug)]
enum Open {
    Text(TextFile),
    Lines(JsonLines),
}

impl Open {
    fn new(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let path = Arc::from(path);
        Ok(if has_extension(&path, &["jsonl", "ndjson"]) {
            Self::Lines(JsonLines {
                path,
                reader: BufReader::new(file),
                line: 0,
                offset: 0,
            })
        } else {
            Self::Text(TextFile {
                path,
                file,
                offset: 0,
                rest: Vec::new(),
            })
        })
    }
}

#[derive(Debug)]
struct TextFile {
    path: Arc<Path>,
    file: File,
    /// Where `rest` begins in the file.
    offset: u64,
    /// Read, but behind the last cut.
    rest: Vec<u8>,
}

impl TextFile {
    /// The next document of at most `longest` bytes; four hold any character, so a cut always exists.
    fn next_piece(&mut self, longest: u64) -> Result<Found> {
        let mut bytes = std::mem::take(&mut self.rest);
        let wanted = longest.saturating_sub(bytes.len() as u64);
        let read = (&mut self.file)
            .take(wanted)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", &self.path, e))?;
        if (read as u64) == wanted {
            let cut = cut_point(&bytes);
            self.rest = bytes.split_off(cut);
        }
        if bytes.is_empty() && self.rest.is_empty() {
            return Ok(Found::End);
        }
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        match String::from_utf8(bytes) {
            Ok(text) if !text.is_empty() && !text.contains('\0') => {
                let path = self.path.clone();
                Ok(Found::Document(Document { path, offset, text }))
            }
            _ if offset == 0 => Ok(Found::NotText),
            _ => Err(Error::format(
                &self.path,
                format!("this text file stops being UTF-8 text after byte {offset}"),
                "convert it to UTF-8 or leave it out",
            )),
        }
    }
}

/// Where to cut a piece: behind its last line end, else behind its last whole character.
fn cut_point(bytes: &[u8]) -> usize {
    if let Some(newline) = bytes.iter().rposition(|&byte| byte == b'\n') {
        return newline + 1;
    }
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(e) => e.valid_up_to(),
    }
}

#[derive(Debug)]
struct JsonLines {
    path: Arc<Path>,
    reader: BufReader<File>,
    /// Lines read.
    line: u64,
    /// Where the next line begins.
    offset: u64,
}

impl JsonLines {
    fn next_document(&mut self, key: &str) -> Result<Found> {
        loop {
            let mut bytes = Vec::new();
            let read = (&mut self.reader)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut bytes)
                .map_err(|e| Error::io("read", &self.path, e))?;
            if read == 0 {
                return Ok(Found::End);
            }
            self.line += 1;
            let offset = self.offset;
            self.offset += read as u64;
            if read as u64 == LONGEST_LINE {
                let what = format!("is longer than {LONGEST_LINE} bytes");
                return Err(self.malformed(&what, "write one JSON object a line"));
            }
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let text = self.text(&bytes, key)?;
            if !text.is_empty() {
                let path = self.path.clone();
                return Ok(Found::Document(Document { path, offset, text }));
            }
        }
    }

    fn text(&self, line: &[u8], key: &str) -> Result<String> {
        use serde_json::{Map, Value};
        let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|e| {
            self.malformed(
                &format!("is no JSON object: {e}"),
                "correct or remove the line",
            )
        })?;
        match object.remove(key) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.malformed(
                &format!("has a field {key:?} that is not a string"),
                "name the field that holds the text",
            )),
            None => {
                let fields: Vec<_> = object.keys().take(8).map(String::as_str).collect();
                let what = format!("has no field {key:?}, but: {}", fields.join(", "));
                Err(self.malformed(&what, "name the field that holds the text"))
            }
        }
    }

    fn malformed(&self, what: &str, remedy: &str) -> Error {
        Error::format(&self.path, format!("line {} {what}", self.line), remedy)
    }
}

/// The files below some paths, in a fixed order.
#[derive(Debug)]
pub(super) struct Walk {
    /// What is still to visit, the next one last.
    stack: Vec<PathBuf>,
    extensions: Vec<String>,
}

impl Walk {
    pub(super) fn new(paths: &[PathBuf], extensions: &[String]) -> Self {
        Self {
            stack: paths.iter().rev().cloned().collect(),
            extensions: extensions.to_vec(),
        }
    }

    fn push_entries(&mut self, folder: &Path) -> Result<()> {
        let failed = |e| Error::io("list", folder, e);
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let kind = entry.file_type().map_err(failed)?;
            let folder = kind.is_dir() && !path.join("CACHEDIR.TAG").exists();
            // `Path::is_file` follows links, and is false for pipes and devices, which would block.
            let file = !kind.is_dir() && self.passes(&path) && path.is_file();
            if !hidden && (folder || file) {
                entries.push(path);
            }
        }
        entries.sort_unstable_by(|a, b| b.cmp(a));
        self.stack.append(&mut entries);
        Ok(())
    }

    fn passes(&self, path: &Path) -> bool {
        self.extensions.is_empty() || has_extension(path, &self.extensions)
    }
}

impl Iterator for Walk {
    type Item = Result<PathBuf>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(path) = self.stack.pop() {
            if !path.is_dir() {
                return Some(Ok(path));
            }
            if let Err(error) = self.push_entries(&path) {
                return Some(Err(error));
            }
        }
        None
    }
}

fn has_extension(path: &Path, extensions: &[impl AsRef<str>]) -> bool {
    path.extension().is_some_and(|found| {
        extensions
            .iter()
            .any(|e| found.eq_ignore_ascii_case(e.as_ref()))
    })
}
