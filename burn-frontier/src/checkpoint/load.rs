//! Loading: any box of any tensor, from whichever shards hold a part of it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use safetensors::Dtype;
use serde::de::DeserializeOwned;

use super::TensorSource;
use super::assembly::Assembly;
use super::folder::{self, Kind};
use super::manifest::{FILE, Manifest, Shard, Slice, Tensor, key};
use super::tensor_file::TensorFile;
use crate::comm::Buffer;
use crate::error::{Error, Result};
use crate::placement::Block;

/// What to do about a checkpoint that cannot be read.
const REMEDY: &str = "remove this checkpoint and load another";

/// A whole checkpoint on disk. Its manifest is in memory; tensors are read when asked for, by any number of threads.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
    /// Shards whose header was read.
    files: Mutex<HashMap<usize, Arc<TensorFile>>>,
}

impl Checkpoint {
    /// The newest whole checkpoint in a folder; none if nothing was ever saved there. Those that were not finished are
    /// passed over, and those that are damaged as well, with a warning. The checksums of tensors are compared when
    /// they are read. No communication: ranks that call it while nobody saves get the same checkpoint.
    ///
    /// # Errors
    /// The folder cannot be read, a checkpoint in it is of a newer version of this library, or there are checkpoints but
    /// none is whole: training must not silently start anew.
    pub fn newest(folder: &Path) -> Result<Option<Self>> {
        if !folder.exists() {
            return Ok(None);
        }
        folder::refuse_newer(folder)?;
        let mut damage = None;
        for entry in folder::list(folder)? {
            if entry.kind == Kind::Temporary {
                continue;
            }
            match Self::open(&entry.path) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => {
                    tracing::warn!("passing over a checkpoint that is not whole: {error}");
                    damage.get_or_insert(error);
                }
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// Opens the checkpoint `path`: reads the manifest, and looks for every shard.
    ///
    /// # Errors
    /// No manifest, a damaged one, one of another program or version; a shard is missing or of another length.
    pub fn open(path: &Path) -> Result<Self> {
        let manifest = Manifest::read(path)?;
        for shard in &manifest.content.shards {
            let file = path.join(&shard.file);
            let about = fs::metadata(&file).map_err(|e| Error::io("find the shard", &file, e))?;
            if !about.is_file() || about.len() != shard.bytes {
                let what = format!("has {} bytes instead of {}", about.len(), shard.bytes);
                return Err(Error::format(&file, what, REMEDY));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            manifest,
            files: Mutex::default(),
        })
    }

    /// The checkpoint's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Optimizer steps taken when it was saved.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// What the program saved beside the tensors.
    ///
    /// # Errors
    /// The state is not of this type.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.manifest.state).map_err(|e| {
            Error::format(
                self.path.join(FILE),
                format!("the state is not what is expected: {e}"),
                "load it with the program and version that saved it",
            )
        })
    }

    /// Names of the tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.manifest.content.tensors.keys().map(String::as_str)
    }

    /// Logical shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.manifest.content.tensors.get(name)?.shape)
    }

    /// Element type of a tensor.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        Some(self.manifest.content.tensors.get(name)?.dtype)
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.manifest.content.tensors.get(name).ok_or_else(|| {
            Error::format(
                &self.path,
                format!(
                    "has no tensor `{name}` among its {}",
                    self.manifest.content.tensors.len()
                ),
                "load it into a model of the configuration it was saved with",
            )
        })
    }

    /// The file of a shard, its header read.
    fn file(&self, index: usize) -> Result<Arc<TensorFile>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&index) {
            return Ok(Arc::clone(file));
        }
        let shard: &Shard = self
            .manifest
            .content
            .shards
            .get(index)
            .ok_or_else(|| Error::Internal(format!("there is no shard {index}")))?;
        let file = Arc::new(TensorFile::open(&self.path.join(&shard.file))?);
        files.insert(index, Arc::clone(&file));
        Ok(file)
    }

    /// The bytes of a box, its checksum compared.
    fn read_slice(&self, name: &str, tensor: &Tensor, slice: &Slice) -> Result<Vec<u8>> {
        let file = self.file(slice.shard)?;
        let key = key(name, slice.index);
        let info = file.info(&key)?;
        if (info.dtype, &info.shape) != (tensor.dtype, &slice.len) {
            let what = format!(
                "`{key}` is {} {:?}, but the manifest says {} {:?}",
                info.dtype, info.shape, tensor.dtype, slice.len
            );
            return Err(Error::format(file.path(), what, REMEDY));
        }
        let data = file.read(&key)?;
        let found = crc32fast::hash(&data);
        if found != slice.crc32 {
            let what = format!(
                "`{key}` is damaged: its checksum is {found:08x} instead of {:08x}",
                slice.crc32
            );
            return Err(Error::format(file.path(), what, REMEDY));
        }
        Ok(data)
    }
}

impl TensorSource for Checkpoint {
    fn read(
        &self,
        name: &str,
        shape: &[usize],
        blocks: &[Block],
        local_shape: &[usize],
    ) -> Result<Buffer> {
        let tensor = self.tensor(name)?;
        let stored = (tensor.shape.as_slice(), tensor.dtype);
        let mut local = Assembly::new((&self.path, name), stored, shape, blocks, local_shape)?;
        for slice in &tensor.slices {
            if local.wants(&slice.start, &slice.len) {
                let data = self.read_slice(name, tensor, slice)?;
                local.fill(&slice.start, &slice.len, &data);
            }
        }
        local.finish(&self.path, name)
    }
    fn list(&self, prefix: &str) -> Vec<(String, Vec<usize>)> {
        let tensors = self.manifest.content.tensors.range(prefix.to_owned()..);
        let found = tensors.take_while(|(name, _)| name.starts_with(prefix));
        found
            .map(|(name, tensor)| (name.clone(), tensor.shape.clone()))
            .collect()
    }
}
