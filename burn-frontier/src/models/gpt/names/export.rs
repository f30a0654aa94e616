//! A checkpoint's model written as Hugging Face's GPT-2.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;

use super::config::{Dimensions, beyond_gpt2, config_json};
use super::{CONFIG, INDEX, MODEL, to_hugging_face};
use crate::checkpoint::disk::Disk;
use crate::checkpoint::tensor_file::{self, Entry};
use crate::checkpoint::{Checkpoint, TensorSource, bytes};
use crate::error::{Error, Result};
use crate::models::gpt::GptConfig;
use crate::placement::Block;

/// Whether [`export`] could write a model into the folder `path`, as far as can be known before there is a checkpoint:
/// GPT-2's form can express the model, and the folder can be made and written to and has no file of those names.
/// Leaves nothing behind.
///
/// # Errors
/// What is in the way.
pub fn check_export(model: &GptConfig, path: &Path) -> Result<()> {
    if let Some(what) = beyond_gpt2(model) {
        return Err(Error::config(
            format!("the model has {what}, which Hugging Face's GPT-2 cannot express"),
            "export a model of GPT-2's form: learned positions, GELU, layer norm, biases, as many key and value heads as heads",
        ));
    }
    for name in [MODEL, INDEX, CONFIG] {
        let file = path.join(name);
        if file.symlink_metadata().is_ok() {
            return Err(Error::format(
                file,
                "is there already, and an export does not overwrite it",
                "export to another folder, or move it away",
            ));
        }
    }
    let made: Vec<&Path> = path
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        .collect();
    let probe = path.join(format!(".writable-{}", std::process::id()));
    let writable = fs::create_dir_all(path)
        .and_then(|()| File::create(&probe))
        .and_then(|_| fs::remove_file(&probe));
    for folder in made {
        // The first that was not made ends it: those above it are not empty, or not made either.
        let _ = fs::remove_dir(folder);
    }
    writable.map_err(|reason| Error::io("export to", path, reason))
}

/// Writes the model tensors of a checkpoint as Hugging Face's GPT-2: `model.safetensors` and `config.json` in the
/// folder `path`. Element types stay. One rank calls it; a tensor at a time is in memory. Each file appears whole or
/// not at all.
///
/// # Errors
/// As [`check_export`]; the checkpoint is of another model or damaged, or the files cannot be written.
pub fn export(checkpoint: &Checkpoint, model: &GptConfig, path: &Path) -> Result<()> {
    check_export(model, path)?;
    let refused = |what: String| {
        Error::format(
            checkpoint.path(),
            what,
            "export a checkpoint of the model that is given with it",
        )
    };
    let mut shapes = BTreeMap::new();
    let mut entries = Vec::new();
    // `NAME::KIND` is optimizer state.
    for name in checkpoint.names().filter(|name| !name.contains("::")) {
        let key = to_hugging_face(name)
            .ok_or_else(|| refused(format!("GPT-2 has no tensor like `{name}`")))?;
        let (Some(shape), Some(dtype)) = (checkpoint.shape(name), checkpoint.dtype(name)) else {
            continue;
        };
        let shape = shape.to_vec();
        shapes.insert(name.to_string(), shape.clone());
        entries.push((name, Entry { key, dtype, shape }));
    }
    let tied = !shapes.contains_key("head.weight");
    let found = Dimensions::infer(&shapes, tied).map_err(refused)?;
    if found != Dimensions::of(model) {
        let model = Dimensions::of(model);
        return Err(refused(format!(
            "holds {found:?}, but the model is {model:?}"
        )));
    }
    entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.dtype.bitsize()));

    // transformers refuses a file that does not say which library's tensors it holds.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let file = path.join(MODEL);
    let header = tensor_file::header(&file, entries.iter().map(|(_, e)| e), Some(metadata))?;
    let tensors = entries.iter().map(|(name, entry)| {
        let blocks = whole(&entry.shape);
        let data = checkpoint.read(name, &entry.shape, &blocks, &entry.shape)?;
        Ok(bytes::as_bytes(&data).to_vec())
    });
    let disk = Disk::new(&|_| Ok(()));
    disk.create_folder(path, true)?;
    replace(disk, &file, std::iter::once(Ok(header)).chain(tensors))?;
    let json = serde_json::to_vec_pretty(&config_json(model))
        .map_err(|e| Error::Internal(format!("a configuration cannot be written as JSON: {e}")))?;
    replace(disk, &path.join(CONFIG), [Ok(json)])?;
    disk.sync_folder(path)
}

/// Writes a file beside its place, and moves it there; what could not be finished goes.
fn replace(
    disk: Disk<'_>,
    path: &Path,
    chunks: impl IntoIterator<Item = Result<Vec<u8>>>,
) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let written = disk.write(&temporary, chunks);
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    disk.rename(&temporary, path)
}

/// All of a tensor as one block; none if it is empty.
fn whole(shape: &[usize]) -> Vec<Block> {
    let block = Block {
        global: vec![0; shape.len()],
        local: vec![0; shape.len()],
        len: shape.to_vec(),
    };
    if block.count() == 0 {
        vec![]
    } else {
        vec![block]
    }
}
