//! Megatron-LM's indexed dataset, written: tokens are streamed, and the files appear only when they are complete.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::indexed::{MAGIC, TokenType, VERSION, paths};
use crate::error::{Error, Result};

/// Writes `prefix.bin` and `prefix.idx` (see [`indexed`](super::indexed)), one sequence a document.
///
/// Nothing is left behind when it is dropped before [`IndexedWriter::finish`]. Memory: four bytes a document.
#[derive(Debug)]
pub struct IndexedWriter {
    bin: Partial,
    idx: PathBuf,
    token_type: TokenType,
    vocabulary: usize,
    /// Tokens of each document.
    lengths: Vec<i32>,
    /// One document, as bytes.
    buffer: Vec<u8>,
}

impl IndexedWriter {
    /// Begins a dataset of tokens below `vocabulary`, stored in Megatron's type for it; makes the folder if needed.
    ///
    /// # Errors
    /// The folder or the file cannot be made, or the vocabulary does not fit Megatron's token types.
    pub fn create(prefix: impl AsRef<Path>, vocabulary: usize) -> Result<Self> {
        if vocabulary > 1 << 31 {
            return Err(Error::config(
                format!(
                    "a vocabulary of {vocabulary} does not fit the 31 bits of Megatron's largest token type"
                ),
                "use a tokenizer with a smaller vocabulary",
            ));
        }
        let (idx, bin) = paths(prefix.as_ref());
        let folder = folder_of(&bin);
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
        Ok(Self {
            bin: Partial::create(bin)?,
            idx,
            token_type: TokenType::for_vocabulary(vocabulary),
            vocabulary,
            lengths: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// Appends a document; it may be empty.
    ///
    /// # Errors
    /// A token is outside the vocabulary, the document has 2^31 tokens or more, or the disk is full.
    pub fn push(&mut self, document: &[u32]) -> Result<()> {
        if let Some(token) = document
            .iter()
            .find(|&&token| token as usize >= self.vocabulary)
        {
            return Err(Error::config(
                format!(
                    "document {} has token {token}, outside the vocabulary of {}",
                    self.lengths.len(),
                    self.vocabulary
                ),
                "give the vocabulary of the tokenizer that made the tokens",
            ));
        }
        let length = i32::try_from(document.len()).map_err(|_| {
            Error::config(
                format!(
                    "document {} has {} tokens; the format holds 2^31 - 1",
                    self.lengths.len(),
                    document.len()
                ),
                "cut the document into shorter ones",
            )
        })?;
        self.buffer.clear();
        for token in document {
            // The vocabulary bounds the token, so the bytes that a narrower type drops are zero.
            self.buffer
                .extend(&token.to_le_bytes()[..self.token_type.size()]);
        }
        self.bin.write(&self.buffer)?;
        self.lengths.push(length);
        Ok(())
    }

    /// Writes the index, syncs both files and gives them their names; a kill before leaves no index, so that two
    /// files of different datasets never meet.
    ///
    /// # Errors
    /// The disk is full, or a file cannot be renamed.
    pub fn finish(mut self) -> Result<()> {
        let mut idx = Partial::create(self.idx.clone())?;
        self.write_index(&mut idx)?;
        self.bin.sync()?;
        idx.sync()?;
        match std::fs::remove_file(&self.idx) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("replace", &self.idx, e));
            }
            _ => {}
        }
        self.bin.publish()?;
        idx.publish()
    }

    fn write_index(&self, idx: &mut Partial) -> Result<()> {
        let documents = self.lengths.len() as u64;
        idx.write(MAGIC)?;
        idx.write(&VERSION.to_le_bytes())?;
        idx.write(&[self.token_type as u8])?;
        idx.write(&documents.to_le_bytes())?;
        idx.write(&(documents + 1).to_le_bytes())?;
        for length in &self.lengths {
            idx.write(&length.to_le_bytes())?;
        }
        let mut pointer = 0_i64;
        for &length in &self.lengths {
            idx.write(&pointer.to_le_bytes())?;
            pointer += i64::from(length) * self.token_type.size() as i64;
        }
        for boundary in 0..=documents {
            idx.write(&boundary.to_le_bytes())?;
        }
        Ok(())
    }
}

/// A file under a temporary name, removed unless it is published.
#[derive(Debug)]
struct Partial {
    writer: BufWriter<File>,
    temporary: PathBuf,
    target: PathBuf,
}

impl Partial {
    fn create(target: PathBuf) -> Result<Self> {
        // The name is new for each writer, so that two processes never share a file.
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut name = target.as_os_str().to_owned();
        name.push(format!(
            ".{}-{}.partial",
            std::process::id(),
            time.as_nanos()
        ));
        let temporary = PathBuf::from(name);
        let file = File::create_new(&temporary).map_err(|e| Error::io("create", &temporary, e))?;
        let writer = BufWriter::with_capacity(1 << 20, file);
        Ok(Self {
            writer,
            temporary,
            target,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer
            .write_all(bytes)
            .map_err(|e| Error::io("write", &self.temporary, e))
    }

    fn sync(&mut self) -> Result<()> {
        let flushed = self
            .writer
            .flush()
            .and_then(|()| self.writer.get_ref().sync_all());
        flushed.map_err(|e| Error::io("write", &self.temporary, e))
    }

    fn publish(self) -> Result<()> {
        std::fs::rename(&self.temporary, &self.target)
            .map_err(|e| Error::io("write", &self.target, e))?;
        // A rename lasts once its folder is synced; where folders cannot be opened, the system does it by itself.
        let folder = folder_of(&self.target);
        match File::open(folder) {
            Ok(opened) => opened
                .sync_all()
                .map_err(|e| Error::io("sync the folder", folder, e)),
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `publish` the name is gone, and removing it does nothing.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
