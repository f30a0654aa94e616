//! File operations that survive a power cut: written, synced, renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Durable operations. Before each one `before` is told of it, and may refuse: so tests stop a writer anywhere.
#[derive(Clone, Copy)]
pub(crate) struct Disk<'a> {
    before: &'a dyn Fn(&str) -> Result<()>,
}

impl<'a> Disk<'a> {
    /// Operations announced to `before`.
    pub(crate) fn new(before: &'a dyn Fn(&str) -> Result<()>) -> Self {
        Self { before }
    }

    fn announce(&self, action: &str, path: &Path) -> Result<()> {
        (self.before)(&format!("{action} {}", path.display()))
    }

    /// Creates a folder, and its parents if `parents`.
    pub(crate) fn create_folder(&self, path: &Path, parents: bool) -> Result<()> {
        self.announce("create", path)?;
        fs::DirBuilder::new()
            .recursive(parents)
            .create(path)
            .map_err(|e| Error::io("create the folder", path, e))
    }

    /// Writes a new file of the given chunks, and syncs it.
    pub(crate) fn write<B: AsRef<[u8]>>(
        &self,
        path: &Path,
        chunks: impl IntoIterator<Item = Result<B>>,
    ) -> Result<()> {
        let failed = |e| Error::io("write", path, e);
        self.announce("create", path)?;
        let file = File::create(path).map_err(|e| Error::io("create", path, e))?;
        let mut writer = BufWriter::new(file);
        for chunk in chunks {
            self.announce("write", path)?;
            writer.write_all(chunk?.as_ref()).map_err(failed)?;
        }
        self.announce("sync", path)?;
        let file = writer.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(|e| Error::io("sync", path, e))
    }

    /// Makes the names in a folder durable.
    pub(crate) fn sync_folder(&self, path: &Path) -> Result<()> {
        self.announce("sync", path)?;
        File::open(path)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| Error::io("sync the folder", path, e))
    }

    /// Gives a file or folder another name.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.announce("rename", from)?;
        fs::rename(from, to).map_err(|e| Error::io("rename", from, e))
    }

    /// Removes a folder with all that is in it. Each file is announced: a writer may be stopped between two.
    pub(crate) fn remove_folder(&self, path: &Path) -> Result<()> {
        for entry in fs::read_dir(path).map_err(|e| Error::io("list the folder", path, e))? {
            let file = entry
                .map_err(|e| Error::io("list the folder", path, e))?
                .path();
            if file.is_file() {
                self.announce("remove", &file)?;
                fs::remove_file(&file).map_err(|e| Error::io("remove", &file, e))?;
            }
        }
        self.announce("remove", path)?;
        fs::remove_dir_all(path).map_err(|e| Error::io("remove the folder", path, e))
    }
}

/// Opens a regular file, and gives its length in bytes.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    let about = fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    if !about.is_file() {
        return Err(Error::format(
            path,
            "is not a regular file",
            "remove it, or give another path",
        ));
    }
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    Ok((file, about.len()))
}

/// The content of a file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, length) = open(path)?;
    if length > limit {
        return Err(Error::format(
            path,
            format!("has {length} bytes, more than the {limit} such a file may have"),
            "check that this is the right file",
        ));
    }
    let mut content = Vec::new();
    file.take(limit)
        .read_to_end(&mut content)
        .map_err(|e| Error::io("read", path, e))?;
    Ok(content)
}

/// Whether `name` names a file in the folder it is looked up in, and nowhere else.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0', ':'])
}
