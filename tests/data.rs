//! The data path: what is read is what was written, wrong files are named, and the order of samples is a function.

#[path = "data/megatron.rs"]
mod megatron;
#[path = "data/order.rs"]
mod order;
#[path = "data/text.rs"]
mod text;
#[path = "data/tokenizers.rs"]
mod tokenizers;

use std::path::{Path, PathBuf};

use burn_frontier::data::Dataset;
use burn_frontier::data::indexed_writer::IndexedWriter;
use tempfile::TempDir;

/// The tokens of each document.
fn contents(dataset: &Dataset) -> Vec<Vec<u32>> {
    let read = |document| {
        let mut tokens = Vec::new();
        let length = dataset.document_tokens(document);
        dataset.read(document, 0..length, &mut tokens).unwrap();
        tokens
    };
    (0..dataset.documents()).map(read).collect()
}

/// Writes a dataset.
fn write_documents(prefix: &Path, vocabulary: usize, documents: &[Vec<u32>]) {
    let mut writer = IndexedWriter::create(prefix, vocabulary).unwrap();
    for document in documents {
        writer.push(document).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes a file, and the folders above it.
fn put(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}
