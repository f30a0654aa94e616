//! Documents from files, folders and JSONL, one at a time, in an order that does not depend on the machine.

mod kind;
mod lines;
mod plain;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kind::Open;
use walk::Walk;

use crate::error::{Error, Result};

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

/// What was read so far, and what was passed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files read.
    pub files: u64,
    /// Files of folders that were left out because they are not UTF-8 text.
    pub skipped: u64,
    /// Files read as JSONL, among those read.
    pub json_lines: u64,
    /// JSON files of folders that were read as plain text, among those read.
    pub json_as_text: u64,
    /// Lines of JSONL without text: the field is null or empty.
    pub without_text: u64,
}

impl Counts {
    /// What deserves a word to the user, in one; empty if nothing does.
    pub fn remarks(&self) -> String {
        let many = |count: u64, one: &str, more: &str| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            _ => Some(format!("{count} {more}")),
        };
        let remarks = [
            many(
                self.skipped,
                "file left out, which is not UTF-8 text",
                "files left out, which are not UTF-8 text",
            ),
            many(
                self.without_text,
                "line without text passed over",
                "lines without text passed over",
            ),
            many(
                self.json_as_text,
                "JSON file read as plain text",
                "JSON files read as plain text",
            ),
        ];
        remarks.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// The documents of files and folders, read as the iterator advances; see [`documents`].
#[derive(Debug)]
pub struct Documents {
    walk: Walk,
    filter: Filter,
    open: Option<Open>,
    counts: Counts,
    left_out: Option<Error>,
}

/// The documents of `paths`, in their order; a folder's entries are taken in the order of their names, recursively.
///
/// A file of one JSON object a line is JSONL, whatever it is called, and has one document a line; any other text file is
/// one document. Text is UTF-8 without NUL; a byte-order mark is no part of it. Empty texts are no documents.
///
/// A file that is named must be of use. One that lies in a folder need not: it is left out and counted if it is not
/// text, wherever in it this shows (so it is read twice); JSON that is not JSONL with the field that holds the text
/// is text like any other there, and counted. In folders, hidden names, linked folders, folders marked with `CACHEDIR.TAG`
/// (build outputs), the folders of [runs](crate::run_folder) and files that are being written (`.partial`) are left out.
///
/// # Errors
/// An item is an error where a file cannot be read, a named file is not text, is JSON but not JSONL, or holds tokens, and where
/// a JSONL line is malformed (file and line are named).
pub fn documents(paths: &[PathBuf], filter: &Filter) -> Documents {
    Documents {
        walk: Walk::new(paths, &filter.extensions),
        filter: filter.clone(),
        open: None,
        counts: Counts::default(),
        left_out: None,
    }
}

/// The files that [`documents`] of the same paths looks at, in its order: those with one of the `extensions`, or all if there
/// are none.
///
/// # Errors
/// An item is an error where a folder cannot be listed.
pub fn files(paths: &[PathBuf], extensions: &[String]) -> impl Iterator<Item = Result<PathBuf>> {
    Walk::new(paths, extensions).map(|found| Ok(found?.path))
}

impl Documents {
    /// What was read and passed over so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Why the first of the [skipped](Counts::skipped) files was left out.
    pub fn left_out(&self) -> Option<&Error> {
        self.left_out.as_ref()
    }

    fn advance(&mut self) -> Result<Option<Document>> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(found) = self.walk.next().transpose()? else {
                    return Ok(None);
                };
                match kind::open(&found, &self.filter.key)? {
                    Ok(open) => self.begin(open),
                    Err(fault) => {
                        self.counts.skipped += 1;
                        self.left_out.get_or_insert(fault.error(&found.path));
                    }
                }
                continue;
            };
            let next = match open {
                Open::Text { file, .. } => file.next_piece(self.filter.longest.max(4))?,
                Open::Lines(file) => {
                    file.next_document(&self.filter.key, &mut self.counts.without_text)?
                }
            };
            match next {
                Some(document) => return Ok(Some(document)),
                None => self.open = None,
            }
        }
    }

    fn begin(&mut self, open: Open) {
        self.counts.files += 1;
        match open {
            Open::Lines(_) => self.counts.json_lines += 1,
            Open::Text { is_json, .. } => self.counts.json_as_text += u64::from(is_json),
        }
        self.open = Some(open);
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

fn has_extension(path: &Path, extensions: &[impl AsRef<str>]) -> bool {
    path.extension().is_some_and(|found| {
        extensions
            .iter()
            .any(|e| found.eq_ignore_ascii_case(e.as_ref()))
    })
}
