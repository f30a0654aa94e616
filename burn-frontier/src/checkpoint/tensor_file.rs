//! safetensors files, one tensor at a time: the crate's own reader and writer want a whole file in memory.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::{bytes, disk};
use crate::error::{Error, Result};

/// The format's own limit for a header, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// What a file says of a tensor before its elements.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The tensor's key in the file.
    pub(crate) key: String,
    /// Element type.
    pub(crate) dtype: Dtype,
    /// Shape.
    pub(crate) shape: Vec<usize>,
}

/// A file's first bytes: the header's length and the header. The tensors' bytes follow in the order of `entries`,
/// which should be largest element type first, so that every tensor is aligned.
pub(crate) fn header<'a>(
    path: &Path,
    entries: impl IntoIterator<Item = &'a Entry>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let refused = |what: String| Error::format(path, what, "save fewer or smaller tensors a file");
    let (mut tensors, mut end) = (Vec::new(), 0usize);
    for entry in entries {
        let start = end;
        end = bytes::count(&entry.shape)
            .and_then(|n| n.checked_mul(entry.dtype.bitsize() / 8)?.checked_add(start))
            .ok_or_else(|| refused(format!("tensor `{}` is too large", entry.key)))?;
        let info = TensorInfo {
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data_offsets: (start, end),
        };
        tensors.push((entry.key.clone(), info));
    }
    let metadata = Metadata::new(metadata, tensors).map_err(|e| refused(e.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| refused(e.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER {
        return Err(refused(format!("the header has {} bytes", json.len())));
    }
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// A safetensors file whose header has been read and checked.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data: u64,
}

impl TensorFile {
    /// Reads the header of a file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let damaged = |what: String| {
            Error::format(
                path,
                what,
                "it is damaged or no safetensors file: use another copy",
            )
        };
        let (mut file, length) = disk::open(path)?;
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix)
            .map_err(|e| Error::io("read", path, e))?;
        let header = u64::from_le_bytes(prefix);
        if header > MAX_HEADER.min(length.saturating_sub(8)) {
            return Err(damaged(format!(
                "a header of {header} bytes is announced in a file of {length}"
            )));
        }
        let mut json = Vec::new();
        (&mut file)
            .take(header)
            .read_to_end(&mut json)
            .map_err(|e| Error::io("read", path, e))?;
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|e| damaged(format!("the header cannot be read: {e}")))?;
        let data = 8 + header;
        if data.checked_add(metadata.data_len() as u64) != Some(length) {
            return Err(damaged(format!(
                "the file has {length} bytes, but its header describes {data} + {}",
                metadata.data_len()
            )));
        }
        Ok(Self {
            path: path.to_path_buf(),
            metadata,
            data,
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keys of the tensors, in the order of their bytes.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Type and shape of a tensor.
    ///
    /// # Errors
    /// No such tensor.
    pub(crate) fn info(&self, key: &str) -> Result<&TensorInfo> {
        self.metadata.info(key).ok_or_else(|| {
            Error::format(
                &self.path,
                format!("has no tensor `{key}`"),
                "it is not the file that was written: use another copy",
            )
        })
    }

    /// A tensor's bytes.
    pub(crate) fn read(&self, key: &str) -> Result<Vec<u8>> {
        let (start, end) = self.info(key)?.data_offsets;
        let failed = |e| Error::io("read", &self.path, e);
        let (mut file, _) = disk::open(&self.path)?;
        file.seek(SeekFrom::Start(self.data + start as u64))
            .map_err(failed)?;
        // Not more than the file has: `open` compared the header with its length.
        let mut content = vec![0; end - start];
        file.read_exact(&mut content).map_err(failed)?;
        Ok(content)
    }
}
