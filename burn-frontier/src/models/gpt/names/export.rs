//! A checkpoint's model written as Hugging Face's GPT-2.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::config::{Dimensions, HuggingFaceConfig};
use super::{CONFIG, MODEL, to_hugging_face};
use crate::checkpoint::disk::Disk;
use crate::checkpoint::tensor_file::{self, Entry};
use crate::checkpoint::{Checkpoint, TensorSource, bytes};
use crate::error::{Error, Result};
use crate::placement::Block;

/// Writes the model tensors of a checkpoint as Hugging Face's GPT-2: `model.safetensors` and `config.json` in the
/// folder `path`. Element types stay. One rank calls it; a tensor at a time is in memory. Each file appears whole or
/// not at all.
///
/// # Errors
/// The checkpoint holds no GPT, is damaged, or the files cannot be written.
pub fn export(checkpoint: &Checkpoint, path: &Path, config: &HuggingFaceConfig) -> Result<()> {
    let refused = |what: String| {
        Error::format(
            checkpoint.path(),
            what,
            "export a checkpoint of a GPT with learned positions and biases",
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
    let dimensions = Dimensions::infer(&shapes, tied).map_err(refused)?;
    entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.dtype.bitsize()));

    // transformers refuses a file that does not say which library's tensors it holds.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let model = path.join(MODEL);
    let header = tensor_file::header(&model, entries.iter().map(|(_, e)| e), Some(metadata))?;
    let tensors = entries.iter().map(|(name, entry)| {
        let blocks = whole(&entry.shape);
        let data = checkpoint.read(name, &entry.shape, &blocks, &entry.shape)?;
        Ok(bytes::as_bytes(&data).to_vec())
    });
    let disk = Disk::new(&|_| Ok(()));
    disk.create_folder(path, true)?;
    replace(
        disk,
        &path.join(CONFIG),
        [Ok(config_json(&dimensions, config)?)],
    )?;
    replace(disk, &model, std::iter::once(Ok(header)).chain(tensors))?;
    disk.sync_folder(path)
}

/// Writes a file beside its place, and moves it there.
fn replace(
    disk: Disk<'_>,
    path: &Path,
    chunks: impl IntoIterator<Item = Result<Vec<u8>>>,
) -> Result<()> {
    let temporary = path.with_extension("tmp");
    disk.write(&temporary, chunks)?;
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

fn config_json(dimensions: &Dimensions, config: &HuggingFaceConfig) -> Result<Vec<u8>> {
    let json = serde_json::json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": dimensions.vocabulary,
        "n_positions": dimensions.positions,
        "n_ctx": dimensions.positions,
        "n_embd": dimensions.hidden,
        "n_layer": dimensions.layers,
        "n_head": config.heads,
        "n_inner": dimensions.inner,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": dimensions.tied,
    });
    serde_json::to_vec_pretty(&json)
        .map_err(|e| Error::Internal(format!("a configuration cannot be written as JSON: {e}")))
}
