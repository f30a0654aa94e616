//! The model of a run, and the length of its samples: those of the flags, of an imported file, or of the run that goes on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::models::gpt::names::{self, Imported};
use burn_frontier::models::gpt::{GptConfig, Positions};

use crate::options::Options;
use crate::saved::Saved;

/// A model, and the samples it learns from.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    pub model: GptConfig,
    /// Tokens a sample, at most the model's positions.
    pub sequence: usize,
}

impl Chosen {
    /// The model at the length of its samples: what a step costs, but for positions that no sample reaches.
    pub fn sampled(&self) -> GptConfig {
        GptConfig {
            sequence: self.sequence,
            ..self.model.clone()
        }
    }
}

/// The file to import, if one is named.
pub fn import(options: &Options) -> Result<Option<Imported>> {
    let import = options.import.as_deref().map(names::import).transpose();
    import.context("--import")
}

/// The tokenizer that lies beside the file to import, as Hugging Face stores a model.
pub fn tokenizer_of_import(options: &Options) -> Option<PathBuf> {
    let path = options.import.as_deref()?;
    let folder = if path.is_dir() { path } else { path.parent()? };
    Some(folder.join("tokenizer.json")).filter(|path| path.is_file())
}

/// The model, for a tokenizer of so many tokens. A checkpoint or a file says what the model is; flags may only agree.
pub fn choose(
    options: &Options,
    vocabulary: Option<usize>,
    import: Option<&Imported>,
    resume: Option<&Checkpoint>,
) -> Result<Chosen> {
    match (resume, import) {
        (Some(checkpoint), _) => resumed(options, checkpoint),
        (None, Some(file)) => imported(options, vocabulary, file),
        (None, None) => {
            let model = options.model(vocabulary)?;
            let sequence = model.sequence;
            Ok(Chosen { model, sequence })
        }
    }
}

fn resumed(options: &Options, checkpoint: &Checkpoint) -> Result<Chosen> {
    let saved: Saved = checkpoint.state()?;
    let sequence = saved.sequence.unwrap_or(saved.model.sequence);
    let (model, whose) = (
        saved.model,
        format!("the run in {}", options.out().display()),
    );
    agree(options, &model, &whose)?;
    if let Some(wanted) = options.sequence.filter(|wanted| *wanted != sequence) {
        bail!(
            "--sequence {wanted}, but {whose} has samples of {sequence} tokens; leave it out, or start a new run without --resume"
        );
    }
    if let Some(wanted) = options.dropout.filter(|wanted| *wanted != model.dropout) {
        bail!(
            "--dropout {wanted}, but {whose} has dropout {}; leave it out, or start a new run without --resume",
            model.dropout
        );
    }
    Ok(Chosen { model, sequence })
}

fn imported(options: &Options, vocabulary: Option<usize>, file: &Imported) -> Result<Chosen> {
    let path = options.import.as_deref().unwrap_or(Path::new("")).display();
    if file.heads().is_none() && options.heads.is_none() {
        bail!(
            "--import {path}: no config.json beside the tensors says how many attention heads they are for; add --heads N, or put the model's config.json there"
        );
    }
    // A number that the file contradicts is refused below, by its flag.
    let heads = options.heads.filter(|_| file.heads().is_none());
    let model = file
        .model(heads, options.dropout)
        .context("--import, where --dropout takes the place of the file's")?;
    let whose = format!("the model in {path}");
    agree(options, &model, &whose)?;
    if let Some(ids) = vocabulary.filter(|ids| *ids > model.vocabulary) {
        bail!(
            "the tokenizer has ids up to {}, but {whose} has {} tokens; use the model's --tokenizer",
            ids - 1,
            model.vocabulary
        );
    }
    let sequence = options.sequence.unwrap_or(model.sequence);
    if sequence > model.sequence {
        bail!(
            "--sequence {sequence}, but {whose} has {0} positions; use at most --sequence {0}",
            model.sequence
        );
    }
    Ok(Chosen { model, sequence })
}

/// Refuses flags that say something else of the model than it is.
fn agree(options: &Options, model: &GptConfig, whose: &str) -> Result<()> {
    let preset = options.model.as_deref();
    let preset = preset
        .map(|name| GptConfig::preset(name, None))
        .transpose()?;
    let named = |size: fn(&GptConfig) -> usize| preset.as_ref().map(size);
    type Size = (
        &'static str,
        Option<usize>,
        Option<usize>,
        usize,
        fn(usize) -> String,
    );
    let sizes: [Size; 5] = [
        (
            "layers",
            options.layers,
            named(|m| m.layers),
            model.layers,
            |n| format!("{n} layers"),
        ),
        (
            "hidden",
            options.hidden,
            named(|m| m.hidden),
            model.hidden,
            |n| format!("a hidden size of {n}"),
        ),
        (
            "heads",
            options.heads,
            named(|m| m.heads),
            model.heads,
            |n| format!("{n} heads"),
        ),
        ("kv-heads", options.kv_heads, None, model.kv_heads, |n| {
            format!("{n} key and value heads")
        }),
        (
            "vocabulary",
            options.vocabulary,
            None,
            model.vocabulary,
            |n| format!("{n} tokens"),
        ),
    ];
    for (flag, given, of_preset, found, words) in sizes {
        if let Some(given) = given.filter(|given| *given != found) {
            bail!(
                "--{flag} {given}, but {whose} has {}; leave it out",
                words(found)
            );
        }
        if let Some(other) = of_preset.filter(|other| given.is_none() && *other != found) {
            bail!(
                "--model {} has {}, but {whose} has {}; leave it out",
                options.model.as_deref().unwrap_or_default(),
                words(other),
                words(found)
            );
        }
    }
    let form = match model.positions {
        Positions::Learned => "gpt2",
        Positions::Rotary => "llama",
    };
    if let Some(given) = options.form.as_deref().filter(|given| *given != form) {
        bail!("--form {given}, but {whose} has the form {form}; leave it out");
    }
    Ok(())
}
