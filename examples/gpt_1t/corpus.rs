//! From text to training and validation samples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn_frontier::data::{
    Dataset, Sampler, SamplerConfig, Tokenizer, default_corpus, text::Filter, tokenize_corpus,
    unigram_loss,
};

use crate::options::Options;

/// Most text taken when none is named.
const DEFAULT_BYTES: u64 = 24 << 20;

/// Samples to learn from and to validate on.
pub struct Corpus {
    pub train: Sampler,
    pub validation: Sampler,
    /// Loss of a model that knows how often every token occurs, and nothing else.
    pub unigram: f64,
    /// Tokens to learn from.
    pub tokens: u64,
    /// What was found, for the user.
    pub summary: String,
}

/// The tokenizer that the options name.
pub fn tokenizer(options: &Options) -> Result<Tokenizer> {
    Ok(match &options.tokenizer {
        Some(path) => Tokenizer::from_file(path)?,
        None => Tokenizer::bytes(),
    })
}

/// Tokenizes the text, unless the run has done so before, and splits it.
pub fn load(
    options: &Options,
    tokenizer: &Tokenizer,
    out: &Path,
    sequence: usize,
    seed: u64,
) -> Result<Corpus> {
    let (dataset, summary) = match &options.data {
        Some(prefix) if with_suffix(prefix, ".idx").exists() => {
            (Dataset::open(prefix)?, format!("{}.bin", prefix.display()))
        }
        _ => tokenized(options, tokenizer, out)?,
    };
    let (train, validation) = dataset.split("98,2")?;
    let vocabulary = tokenizer.vocabulary();
    let count = |dataset: &Dataset| dataset.token_counts(vocabulary, 8_000_000);
    let unigram = unigram_loss(&count(&train)?, &count(&validation)?);
    let sampler = SamplerConfig {
        sequence,
        vocabulary,
        seed,
    };
    let tokens = train.tokens();
    Ok(Corpus {
        train: sampler.init(&train).context("the training text")?,
        validation: sampler.init(&validation).context("the validation text")?,
        unigram,
        tokens,
        summary: format!(
            "{summary}: {tokens} tokens to learn, {} to validate",
            validation.tokens()
        ),
    })
}

/// The run keeps its tokens, so that a resumed run sees the same ones although files may have changed since.
fn tokenized(options: &Options, tokenizer: &Tokenizer, out: &Path) -> Result<(Dataset, String)> {
    let folder = out.join("data");
    let (prefix, note) = (folder.join("corpus"), folder.join("source.txt"));
    if options.resume && with_suffix(&prefix, ".idx").exists() {
        let before = std::fs::read_to_string(&note)
            .with_context(|| format!("cannot read {}", note.display()))?;
        if let Some(path) = options.data.as_ref().filter(|path| before != source(path)) {
            bail!(
                "the run in {} learns other text than {}; leave out --data, or start a new run without --resume",
                out.display(),
                path.display()
            );
        }
        let dataset = Dataset::open(&prefix)?;
        return Ok((dataset, "the tokens of the run before".into()));
    }
    let (files, what) = match &options.data {
        Some(path) => (vec![path.clone()], source(path)),
        None => {
            let found = default_corpus(DEFAULT_BYTES)?;
            let what = found.to_string();
            (found.files, what)
        }
    };
    std::fs::create_dir_all(&folder).context("cannot make the folder for tokens")?;
    tokenize_corpus(&files, &filter(&files), tokenizer, &prefix, |_| ())?;
    std::fs::write(&note, &what).context("cannot note where the text came from")?;
    Ok((Dataset::open(&prefix)?, what))
}

/// A single file is cut into at least some fifty documents, so that some can be kept for validation.
fn filter(files: &[PathBuf]) -> Filter {
    let mut filter = Filter::default();
    if let [file] = files
        && let Ok(metadata) = file.metadata()
        && metadata.is_file()
    {
        filter.longest = (metadata.len() / 50).clamp(1024, filter.longest);
    }
    filter
}

/// How a run notes the text it was given.
fn source(path: &Path) -> String {
    path.display().to_string()
}

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
