//! Text to an indexed dataset on disk, once, before training.

use std::path::{Path, PathBuf};

use super::indexed_writer::IndexedWriter;
use super::text::{Counts, Filter, documents};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Text encoded at once, in bytes: enough for all cores, little enough for memory.
const BATCH: usize = 8 << 20;

/// What a tokenization read and wrote, so far or in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Files and lines, read and passed over.
    pub counts: Counts,
    /// Documents written.
    pub documents: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Tokens written, ends of documents included.
    pub tokens: u64,
}

/// Tokenizes the documents of `paths` into `prefix.bin` and `prefix.idx`, each closed by an end-of-document token.
///
/// Reads and writes as it goes, so the corpus may be larger than memory; `progress` is called every few megabytes.
/// Files of that name are replaced when all is written, and not before.
///
/// # Errors
/// A document cannot be read or encoded, the disk is full, or there is no text at all.
pub fn tokenize_corpus(
    paths: &[PathBuf],
    filter: &Filter,
    tokenizer: &Tokenizer,
    prefix: impl AsRef<Path>,
    mut progress: impl FnMut(&Stats),
) -> Result<Stats> {
    let mut writer = IndexedWriter::create(prefix, tokenizer.vocabulary())?;
    let mut documents = documents(paths, filter);
    let mut stats = Stats::default();
    loop {
        let mut texts = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH
            && let Some(document) = documents.next()
        {
            let text = document?.text;
            bytes += text.len();
            texts.push(text);
        }
        stats.counts = documents.counts();
        if texts.is_empty() {
            break;
        }
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for document in tokenizer.encode_documents(&texts)? {
            writer.push(&document)?;
            stats.tokens += document.len() as u64;
        }
        stats.documents += texts.len() as u64;
        stats.bytes += bytes as u64;
        progress(&stats);
    }
    if let Some(error) = documents.left_out() {
        let count = stats.counts.skipped;
        tracing::warn!("files left out: {count}; the first: {error}");
    }
    if stats.documents == 0 {
        let names: Vec<_> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(Error::config(
            format!(
                "no text in {} ({} files are not UTF-8 text, {} lines have no text)",
                names.join(", "),
                stats.counts.skipped,
                stats.counts.without_text
            ),
            "name text or JSONL files, decompressed, or folders that hold some",
        ));
    }
    writer.finish()?;
    Ok(stats)
}
