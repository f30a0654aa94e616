//! The model of a run, and the length of its samples: those of the flags, of an imported file, or of the run that goes on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::models::gpt::names::{self, Imported};
use burn_frontier::models::gpt::{GptConfig, Positions};

use crate::options::{Form, Options};
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
    let sizes: [Size; 6] = [
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
        (
            "sequence",
            // Samples may be shorter than what the model has positions for.
            options.sequence.map(|_| model.sequence),
            named(|m| m.sequence),
            model.sequence,
            |n| format!("{n} positions"),
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
        Positions::Learned => Form::Gpt2,
        Positions::Rotary => Form::Llama,
    };
    if let Some(given) = options.form.filter(|&given| given != form) {
        let [given, form] = [given, form].map(|form| format!("{form:?}").to_lowercase());
        bail!("--form {given}, but {whose} has the form {form}; leave it out");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use burn_frontier::checkpoint;
    use burn_frontier::comm::local;
    use clap::Parser;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    /// Two layers, hidden 8, four heads, nine tokens, six positions.
    fn gpt2() -> GptConfig {
        GptConfig::new(2, 8, 4, 9, 6).with_dropout(0.25)
    }

    fn folder(config: Option<Value>) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = vec![("wte.weight".to_string(), vec![9, 8])];
        tensors.push(("wpe.weight".into(), vec![6, 8]));
        let mut add = |module: String, weight: &[usize], out: usize| {
            tensors.push((format!("{module}.weight"), weight.to_vec()));
            tensors.push((format!("{module}.bias"), vec![out]));
        };
        add("ln_f".into(), &[8], 8);
        for layer in 0..2 {
            add(format!("h.{layer}.ln_1"), &[8], 8);
            add(format!("h.{layer}.attn.c_attn"), &[8, 24], 24);
            add(format!("h.{layer}.attn.c_proj"), &[8, 8], 8);
            add(format!("h.{layer}.ln_2"), &[8], 8);
            add(format!("h.{layer}.mlp.c_fc"), &[8, 32], 32);
            add(format!("h.{layer}.mlp.c_proj"), &[32, 8], 8);
        }
        let zeros = vec![0; 4 * 512];
        let views = tensors.into_iter().map(|(name, shape)| {
            let bytes = &zeros[..4 * shape.iter().product::<usize>()];
            (name, TensorView::new(Dtype::F32, shape, bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        if let Some(config) = config {
            fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        }
        folder
    }

    fn config() -> Value {
        json!({ "n_head": 4, "resid_pdrop": 0.25, "embd_pdrop": 0.25, "attn_pdrop": 0.25 })
    }

    fn parse(arguments: &[&str]) -> Options {
        Options::try_parse_from([&["gpt_1t"], arguments].concat()).unwrap()
    }

    /// What is chosen from the file in `folder`, with these arguments and a tokenizer of so many ids.
    fn from_file(folder: &TempDir, arguments: &[&str], ids: usize) -> Result<Chosen, String> {
        let path = folder.path().to_str().unwrap();
        let options = parse(&[&["--import", path], arguments].concat());
        let chosen =
            import(&options).and_then(|file| choose(&options, Some(ids), file.as_ref(), None));
        chosen.map_err(|error| format!("{error:#}"))
    }

    /// What is chosen from a checkpoint of `saved`, with these arguments.
    fn from_checkpoint(saved: &Value, arguments: &[&str]) -> Result<Chosen, String> {
        let folder = tempfile::tempdir().unwrap();
        let comm = local::single();
        let path = checkpoint::save(folder.path(), 1, saved, [], &*comm, 0).unwrap();
        let resume = Checkpoint::open(&path).unwrap();
        let options = parse(&[&["--resume"], arguments].concat());
        choose(&options, Some(9), None, Some(&resume)).map_err(|error| format!("{error:#}"))
    }

    fn saved(sequence: Option<usize>) -> Value {
        json!({
            "model": gpt2(), "sequence": sequence, "tokenizer": "bytes-257", "tokens": 1, "precision": "F32", "seed": 1,
            "samples": 8, "optimizer_steps": 1, "global_batch": 8,
            "scaler": burn_frontier::optim::scaler::LossScaler::off(),
        })
    }

    /// Flags that contradict the model, and what is said of each.
    const WRONG: [(&[&str], &str); 9] = [
        (
            &["--layers", "3"],
            "--layers 3, but the model in X has 2 layers",
        ),
        (
            &["--hidden", "16"],
            "--hidden 16, but the model in X has a hidden size of 8",
        ),
        (
            &["--heads", "8"],
            "--heads 8, but the model in X has 4 heads",
        ),
        (
            &["--kv-heads", "2"],
            "--kv-heads 2, but the model in X has 4 key and value heads",
        ),
        (
            &["--form", "llama"],
            "--form llama, but the model in X has the form gpt2",
        ),
        (
            &["--model", "tiny"],
            "--model tiny has 4 layers, but the model in X has 2 layers",
        ),
        (
            &["--model", "tiny", "--layers", "2"],
            "--model tiny has a hidden size of 128, but the model in X has a hidden size of 8",
        ),
        (
            &["--plan", "--vocabulary", "10"],
            "--vocabulary 10, but the model in X has 9 tokens",
        ),
        (&["--model", "huge"], "there is no model named 'huge'"),
    ];

    #[test]
    fn a_flag_that_contradicts_the_file_or_the_run_is_refused_with_both_values() {
        let folder = folder(Some(config()));
        let name = folder.path().display().to_string();
        for (arguments, said) in WRONG {
            let found = from_file(&folder, arguments, 9).unwrap_err();
            assert!(found.contains(&said.replace('X', &name)), "{found}");
            let found = from_checkpoint(&saved(None), arguments).unwrap_err();
            let said = said.replace("the model in X", "the run in runs/gpt_1t");
            assert!(found.contains(&said), "{found}");
        }
        let found = from_file(&folder, &["--sequence", "7"], 9).unwrap_err();
        assert!(found.contains("has 6 positions"), "{found}");
        let shape = ["--layers", "2", "--hidden", "8", "--heads", "4"];
        let preset = [&["--model", "tiny"], &shape[..]].concat();
        let found = from_file(&folder, &preset, 9).unwrap_err();
        assert!(found.contains("--model tiny has 128 positions"), "{found}");
        assert!(from_file(&folder, &[&preset[..], &["--sequence", "6"]].concat(), 9).is_ok());
        for (arguments, said) in [
            (
                ["--sequence", "6"],
                "--sequence 6, but the run in runs/gpt_1t has samples of 4 tokens",
            ),
            (
                ["--dropout", "0.1"],
                "--dropout 0.1, but the run in runs/gpt_1t has dropout 0.25",
            ),
        ] {
            let found = from_checkpoint(&saved(Some(4)), &arguments).unwrap_err();
            assert!(found.contains(said), "{found}");
        }
    }

    #[test]
    fn file_and_run_give_the_model_without_a_flag_or_with_those_that_agree() {
        let (model, whole) = (
            gpt2(),
            Chosen {
                model: gpt2(),
                sequence: 6,
            },
        );
        let same = [
            "--layers", "2", "--hidden", "8", "--heads", "4", "--form", "gpt2",
        ];
        let folder = folder(Some(config()));
        for arguments in [&[][..], &same] {
            assert_eq!(from_file(&folder, arguments, 9).unwrap(), whole);
            assert_eq!(from_checkpoint(&saved(None), arguments).unwrap(), whole);
            assert_eq!(from_checkpoint(&saved(Some(6)), arguments).unwrap(), whole);
        }
        let short = Chosen { model, sequence: 4 };
        assert_eq!(from_file(&folder, &["--sequence", "4"], 9).unwrap(), short);
        assert_eq!(from_checkpoint(&saved(Some(4)), &[]).unwrap(), short);
        assert_eq!(
            short.sampled(),
            GptConfig {
                sequence: 4,
                ..gpt2()
            }
        );
        let other = from_file(&folder, &["--dropout", "0.5"], 9).unwrap();
        assert_eq!(other.model, gpt2().with_dropout(0.5));
    }

    #[test]
    fn what_the_file_leaves_open_is_asked_for_by_its_flag() {
        let bare = folder(None);
        let found = from_file(&bare, &[], 9).unwrap_err();
        assert!(found.contains("add --heads N"), "{found}");
        let chosen = from_file(&bare, &["--heads", "2", "--dropout", "0"], 9).unwrap();
        assert_eq!(chosen.model, GptConfig::new(2, 8, 2, 9, 6));

        let mut several = config();
        several["attn_pdrop"] = json!(0);
        let several = folder(Some(several));
        let found = from_file(&several, &[], 9).unwrap_err();
        assert!(
            found.contains("attn_pdrop 0") && found.contains("--dropout"),
            "{found}"
        );
        assert!(from_file(&several, &["--dropout", "0.25"], 9).is_ok());
    }

    #[test]
    fn a_tokenizer_may_have_fewer_ids_than_the_file_but_not_more() {
        let folder = folder(Some(config()));
        assert_eq!(from_file(&folder, &[], 5).unwrap().model, gpt2());
        let found = from_file(&folder, &[], 10).unwrap_err();
        assert!(
            found.contains("ids up to 9") && found.contains("has 9 tokens"),
            "{found}"
        );

        let options = parse(&["--import", folder.path().to_str().unwrap()]);
        assert_eq!(tokenizer_of_import(&options), None);
        let beside = folder.path().join("tokenizer.json");
        fs::write(&beside, "{}").unwrap();
        assert_eq!(tokenizer_of_import(&options), Some(beside.clone()));
        let file = folder.path().join("model.safetensors");
        let options = parse(&["--import", file.to_str().unwrap()]);
        assert_eq!(tokenizer_of_import(&options), Some(beside));
    }
}
