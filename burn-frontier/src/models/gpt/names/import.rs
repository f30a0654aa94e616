//! Hugging Face's GPT-2 read by our names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::config::{Dimensions, HuggingFaceConfig};
use super::{CONFIG, INDEX, MODEL, from_hugging_face};
use crate::checkpoint::TensorSource;
use crate::checkpoint::assembly::Assembly;
use crate::checkpoint::disk;
use crate::checkpoint::tensor_file::TensorFile;
use crate::comm::Buffer;
use crate::error::{Error, Result};
use crate::placement::Block;
use crate::utf8;

/// An index or configuration file has at most this many bytes.
const MAX_JSON: u64 = 64 << 20;

/// Hugging Face's GPT-2 on disk, read by our names.
#[derive(Debug)]
pub struct Imported {
    path: PathBuf,
    dimensions: Dimensions,
    config: Option<HuggingFaceConfig>,
    files: Vec<TensorFile>,
    /// File and key of each tensor, by our name.
    tensors: BTreeMap<String, (usize, String)>,
}

/// The members of a `config.json` that are read here.
#[derive(Deserialize)]
struct ConfigFile {
    /// Hugging Face's own default is to tie.
    #[serde(default = "default_tied")]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    config: HuggingFaceConfig,
}

fn default_tied() -> bool {
    true
}

/// The member of an index file that is read here: the file of each tensor.
#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

/// Opens Hugging Face's GPT-2: a safetensors file, or a folder with `model.safetensors` or
/// `model.safetensors.index.json`, and perhaps `config.json`. Reads headers only.
///
/// # Errors
/// Missing or damaged files, tensors missing or of shapes that do not fit together.
pub fn import(path: &Path) -> Result<Imported> {
    let folder = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    let index = path.join(INDEX);
    let files = if !path.is_dir() {
        vec![TensorFile::open(path)?]
    } else if index.is_file() {
        let index: IndexFile = read_json(&index)?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        names
            .iter()
            .map(|name| open_beside(path, name))
            .collect::<Result<_>>()?
    } else {
        vec![TensorFile::open(&path.join(MODEL))?]
    };
    let config = folder.join(CONFIG);
    let config: Option<ConfigFile> = config.is_file().then(|| read_json(&config)).transpose()?;
    let refused = |what: String| Error::format(path, what, "only GPT-2 models can be imported");

    let (mut tensors, mut shapes) = (BTreeMap::new(), BTreeMap::new());
    for (number, file) in files.iter().enumerate() {
        for key in file.keys() {
            let Some(name) = from_hugging_face(&key) else {
                note_ignored(&key);
                continue;
            };
            shapes.insert(name.clone(), file.info(&key)?.shape.clone());
            if tensors.insert(name, (number, key.clone())).is_some() {
                return Err(refused(format!("tensor `{key}` is there twice")));
            }
        }
    }
    let ties = config
        .as_ref()
        .is_some_and(|config| config.tie_word_embeddings);
    let tied = ties || !tensors.contains_key("head.weight");
    Ok(Imported {
        path: path.to_path_buf(),
        dimensions: Dimensions::infer(&shapes, tied).map_err(refused)?,
        config: config.map(|config| config.config),
        files,
        tensors,
    })
}

fn open_beside(folder: &Path, name: &str) -> Result<TensorFile> {
    if !disk::is_plain(name) {
        return Err(Error::format(
            folder.join(INDEX),
            format!("{name:?} is no name of a file beside it"),
            "use an index as Hugging Face writes it",
        ));
    }
    TensorFile::open(&folder.join(name))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let bytes = disk::read(path, MAX_JSON)?;
    serde_json::from_str(utf8::text(path, &bytes)?).map_err(|e| {
        Error::format(
            path,
            format!("cannot be understood: {e}"),
            "use a file of a GPT-2 model",
        )
    })
}

/// Old files hold the causal mask as buffers; anything else that is left out deserves a word.
fn note_ignored(key: &str) {
    if !key.ends_with(".attn.bias") && !key.ends_with(".attn.masked_bias") {
        tracing::warn!("tensor `{key}` is not one of a GPT-2 language model: it is left out");
    }
}

impl Imported {
    /// The model's sizes.
    pub fn dimensions(&self) -> Dimensions {
        self.dimensions
    }

    /// What its `config.json` says; none if there is no such file.
    pub fn config(&self) -> Option<&HuggingFaceConfig> {
        self.config.as_ref()
    }
}

impl TensorSource for Imported {
    fn read(
        &self,
        name: &str,
        shape: &[usize],
        blocks: &[Block],
        local_shape: &[usize],
    ) -> Result<Buffer> {
        let (file, key) = self
            .tensors
            .get(name)
            .and_then(|(number, key)| Some((self.files.get(*number)?, key)))
            .ok_or_else(|| {
                Error::format(
                    &self.path,
                    format!("has no tensor `{name}`"),
                    "configure the model by the file's `dimensions`",
                )
            })?;
        let info = file.info(key)?;
        let stored = (info.shape.as_slice(), info.dtype);
        let mut local = Assembly::new((file.path(), name), stored, shape, blocks, local_shape)?;
        let start = vec![0; info.shape.len()];
        if local.wants(&start, &info.shape) {
            local.fill(&start, &info.shape, &file.read(key)?);
        }
        local.finish(file.path(), name)
    }
}
