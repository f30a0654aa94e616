//! The files below some paths.

use std::path::{Path, PathBuf};

use super::has_extension;
use crate::error::{Error, Result};
use crate::run_folder;

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// Somebody asked for this very file: it does not just lie in a folder.
    pub(super) named: bool,
}

/// The files below some paths, in a fixed order.
#[derive(Debug)]
pub(super) struct Walk {
    /// What is still to visit, the next one last.
    stack: Vec<Found>,
    extensions: Vec<String>,
}

impl Walk {
    pub(super) fn new(paths: &[PathBuf], extensions: &[String]) -> Self {
        let named = |path: &PathBuf| Found {
            path: path.clone(),
            named: true,
        };
        Self {
            stack: paths.iter().rev().map(named).collect(),
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
            let folder =
                kind.is_dir() && !path.join("CACHEDIR.TAG").exists() && !run_folder::is_run(&path);
            // `Path::is_file` follows links, and is false for pipes and devices, which would block.
            let file = !kind.is_dir() && self.passes(&path) && path.is_file();
            // What this library is about to write, perhaps now: tokens beside their text, for one.
            let file = file && !has_extension(&path, &["partial"]);
            if !hidden && (folder || file) {
                entries.push(Found { path, named: false });
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
    type Item = Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(found) = self.stack.pop() {
            if !found.path.is_dir() {
                return Some(Ok(found));
            }
            if let Err(error) = self.push_entries(&found.path) {
                return Some(Err(error));
            }
        }
        None
    }
}
