//! Hugging Face's GPT-2 read by our names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::Deserialize;

use super::config::{ConfigFile, Dimensions};
use super::{CONFIG, INDEX, MODEL, from_hugging_face, split_layer};
use crate::checkpoint::TensorSource;
use crate::checkpoint::assembly::Assembly;
use crate::checkpoint::bytes;
use crate::checkpoint::disk;
use crate::checkpoint::tensor_file::TensorFile;
use crate::comm::Buffer;
use crate::error::{Error, Result};
use crate::models::gpt::GptConfig;
use crate::models::gpt::specs::TOKEN_EMBEDDING;
use crate::placement::{Block, Placement};
use crate::utf8;

/// The output projection, where it is not the token embedding.
const HEAD: &str = "head.weight";
/// PyTorch's own format: a program, not data.
const PICKLED: &str = "pytorch_model.bin";
/// What parameters are stored as.
const FLOATS: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];
/// Tensors that a message names.
const NAMED: usize = 20;
/// An index or configuration file has at most this many bytes.
const MAX_JSON: u64 = 64 << 20;

/// Number of a file, and a tensor's key in it.
type Place = (usize, String);

/// Hugging Face's GPT-2 on disk, read by our names.
#[derive(Debug)]
pub struct Imported {
    path: PathBuf,
    dimensions: Dimensions,
    config: Option<ConfigFile>,
    files: Vec<TensorFile>,
    /// Where each tensor is, by our name.
    tensors: BTreeMap<String, Place>,
}

/// The member of an index file that is read here: the file of each tensor.
#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

/// Opens Hugging Face's GPT-2: a safetensors file, or a folder with `model.safetensors` or
/// `model.safetensors.index.json`; and the `config.json` beside it, if there is one. Reads headers only, and an output
/// projection that may be the token embedding. Warns of tensors that are left out.
///
/// # Errors
/// Missing or damaged files; tensors missing, of shapes that do not fit together or of other types than floats; a
/// `config.json` that contradicts the tensors, or is of a model that a [`GptConfig`] cannot be.
pub fn import(path: &Path) -> Result<Imported> {
    let folder = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    let file = folder.join(CONFIG);
    let config: Option<ConfigFile> = file.is_file().then(|| read_json(&file)).transpose()?;
    if let Some(config) = &config {
        config.check().map_err(|what| {
            Error::format(&file, what, "import a model of the form that GPT-2 has")
        })?;
    }
    let files = open_files(path)?;
    let tensors = known_tensors(path, &files)?;
    let shapes = tensors
        .iter()
        .map(|(name, (number, key))| Ok((name.clone(), files[*number].info(key)?.shape.clone())))
        .collect::<Result<_>>()?;
    let mut imported = Imported {
        path: path.to_path_buf(),
        dimensions: Dimensions::infer(&shapes, !tensors.contains_key(HEAD))
            .map_err(|what| Error::format(path, what, "only GPT-2 models can be imported"))?,
        config,
        files,
        tensors,
    };
    imported.settle_head()?;
    if let Some(config) = &imported.config {
        config.agree(&imported.dimensions).map_err(|what| {
            Error::format(
                &file,
                what,
                "use the config.json that belongs to the tensors",
            )
        })?;
    }
    Ok(imported)
}

/// The files with tensors.
fn open_files(path: &Path) -> Result<Vec<TensorFile>> {
    let index = path.join(INDEX);
    if !path.is_dir() {
        return Ok(vec![TensorFile::open(path)?]);
    }
    if !index.is_file() {
        let file = path.join(MODEL);
        if !file.exists() && path.join(PICKLED).exists() {
            return Err(Error::format(
                path,
                format!("has {PICKLED} but no {MODEL}, and only safetensors are read"),
                "load it in Python and save it with `safe_serialization=True`",
            ));
        }
        return Ok(vec![TensorFile::open(&file)?]);
    }
    let index: IndexFile = read_json(&index)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    names.iter().map(|name| open_beside(path, name)).collect()
}

/// Where the tensors of a GPT-2 are; says which others are left out.
fn known_tensors(path: &Path, files: &[TensorFile]) -> Result<BTreeMap<String, Place>> {
    let (mut tensors, mut left_out) = (BTreeMap::new(), Vec::new());
    for (number, file) in files.iter().enumerate() {
        for key in file.keys() {
            let Some(name) = from_hugging_face(&key) else {
                if !is_mask(&key) {
                    left_out.push(key);
                }
                continue;
            };
            let dtype = file.info(&key)?.dtype;
            if !FLOATS.contains(&dtype) {
                return Err(Error::format(
                    file.path(),
                    format!("tensor `{key}` has elements of type {dtype}"),
                    "convert it to F32, F16 or BF16",
                ));
            }
            if tensors.insert(name, (number, key.clone())).is_some() {
                return Err(Error::format(
                    path,
                    format!("tensor `{key}` is there twice"),
                    "only GPT-2 models can be imported",
                ));
            }
        }
    }
    if !left_out.is_empty() {
        tracing::warn!(
            "{}: left out, for a GPT-2 language model has no such tensors: {}",
            path.display(),
            enumerate(&left_out)
        );
    }
    Ok(tensors)
}

/// All names of a short list, the first of a long one.
fn enumerate(names: &[String]) -> String {
    let shown = names.len().min(NAMED);
    let rest = match names.len() - shown {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{rest}", names[..shown].join(", "))
}

/// Old files hold the causal mask of every layer as buffers, which nobody needs.
fn is_mask(key: &str) -> bool {
    let bare = key.strip_prefix("transformer.").unwrap_or(key);
    let layer = bare.strip_prefix("h.").and_then(split_layer);
    matches!(layer, Some((_, "attn.bias" | "attn.masked_bias")))
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

impl Imported {
    /// Attention heads; none if no `config.json` says so, for tensors do not tell.
    pub fn heads(&self) -> Option<usize> {
        self.config.as_ref()?.n_head
    }

    /// The model of the file. `heads` is needed where [`Self::heads`] is none; `dropout` takes the place of the file's.
    ///
    /// # Errors
    /// No number of heads, or another one than the file's; several probabilities of dropout, where a [`GptConfig`] has one.
    pub fn model(&self, heads: Option<usize>, dropout: Option<f64>) -> Result<GptConfig> {
        let refused = |what: String, remedy: &str| Error::format(&self.path, what, remedy);
        let heads = match (self.heads(), heads) {
            (Some(said), Some(wanted)) if said != wanted => {
                let what = format!("has {said} heads, not {wanted}");
                return Err(refused(what, "leave the number of heads to the file"));
            }
            (Some(heads), _) | (None, Some(heads)) => heads,
            (None, None) => {
                return Err(refused(
                    "no config.json beside the tensors says how many attention heads they are for"
                        .into(),
                    "give the number of heads, or put the model's config.json there",
                ));
            }
        };
        let sizes = self.dimensions;
        if heads == 0 || !sizes.hidden.is_multiple_of(heads) {
            let what = format!(
                "a hidden size of {} is no multiple of {heads} heads",
                sizes.hidden
            );
            return Err(refused(
                what,
                "give the number of heads it was trained with",
            ));
        }
        if self.config.is_none() {
            tracing::warn!(
                "{}: there is no config.json, so the rest is taken to be as GPT-2 has it: GELU in its tanh form, epsilon 1e-5, dropout 0.1 unless it is given",
                self.path.display()
            );
        }
        let config = self.config.clone().unwrap_or_default();
        let dropout = match dropout {
            Some(dropout) => dropout,
            None => config
                .dropout()
                .map_err(|what| refused(what, "give the probability of dropout"))?,
        };
        let (vocabulary, positions) = (sizes.vocabulary, sizes.positions);
        Ok(GptConfig {
            ffn: sizes.inner,
            tied: sizes.tied,
            epsilon: config.layer_norm_epsilon,
            dropout,
            ..GptConfig::new(sizes.layers, sizes.hidden, heads, vocabulary, positions)
        })
    }

    /// Whether the head is the token embedding: `tie_word_embeddings` decides, or the tensors where there is no
    /// `config.json`.
    fn settle_head(&mut self) -> Result<()> {
        let ties = self
            .config
            .as_ref()
            .map(|config| config.tie_word_embeddings);
        let Some(head) = self.tensors.get(HEAD) else {
            return match ties {
                Some(false) => Err(Error::format(
                    &self.path,
                    "has tie_word_embeddings false, but there is no tensor `lm_head.weight`",
                    "use all files of the model",
                )),
                _ => Ok(()),
            };
        };
        let same = ties != Some(false)
            && self.bytes(head)? == self.bytes(&self.tensors[TOKEN_EMBEDDING])?;
        if ties == Some(true) && !same {
            tracing::warn!(
                "{}: `lm_head.weight` is left out: it differs from the token embedding, which is the head for tie_word_embeddings is true",
                self.path.display()
            );
        }
        self.dimensions.tied = ties == Some(true) || same;
        Ok(())
    }

    /// Reads every tensor once, so that what [`TensorSource::read`] would refuse is known before anything is made.
    ///
    /// # Errors
    /// A tensor that cannot be read, or holds NaN or infinite values.
    pub fn check_values(&self) -> Result<()> {
        for (name, (file, key)) in &self.tensors {
            let shape = &self.files[*file].info(key)?.shape;
            let whole = Placement::Replicated.blocks(shape, 0, 1);
            self.read(name, shape, &whole, shape)?;
        }
        Ok(())
    }

    /// A tensor's type and bytes.
    fn bytes(&self, (file, key): &Place) -> Result<(Dtype, Vec<u8>)> {
        let file = &self.files[*file];
        Ok((file.info(key)?.dtype, file.read(key)?))
    }
}

impl TensorSource for Imported {
    /// As the trait says; a tensor with NaN or infinite values is refused as well.
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
                    "take the model from the file's `model`",
                )
            })?;
        let info = file.info(key)?;
        let stored = (info.shape.as_slice(), info.dtype);
        let mut local = Assembly::new((file.path(), name), stored, shape, blocks, local_shape)?;
        let start = vec![0; info.shape.len()];
        if local.wants(&start, &info.shape) {
            local.fill(&start, &info.shape, &file.read(key)?);
        }
        let data = local.finish(file.path(), name)?;
        let mut blocks = blocks.iter();
        let found =
            blocks.find_map(|block| bytes::first_non_finite(&data, block, shape, local_shape));
        if let Some((index, value)) = found {
            return Err(Error::format(
                file.path(),
                format!(
                    "tensor `{key}` holds NaN or infinite values: element {index} of {shape:?} is {value}"
                ),
                "use another copy of the model",
            ));
        }
        Ok(data)
    }

    fn list(&self, prefix: &str) -> Vec<(String, Vec<usize>)> {
        let tensors = self.tensors.range(prefix.to_owned()..);
        let found = tensors.take_while(|(name, _)| name.starts_with(prefix));
        let shape = |(file, key): &Place| {
            let info = self.files.get(*file)?.info(key).ok()?;
            Some(info.shape.clone())
        };
        found
            .filter_map(|(name, place)| Some((name.clone(), shape(place)?)))
            .collect()
    }
}
