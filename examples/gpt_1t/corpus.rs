//! From text to training and validation samples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn_frontier::data::{
    Dataset, Sampler, SamplerConfig, Tokenizer, text::Filter, tokenize_corpus, unigram_loss,
};
use burn_frontier::run_folder::RunFolder;

use crate::default_corpus::default_corpus;
use crate::folder::absolute;
use crate::options::Options;

/// Most text taken when none is named.
const DEFAULT_BYTES: u64 = 24 << 20;

/// The file that says where the tokens beside it came from.
const SOURCE: &str = "source.txt";

/// Samples to learn from and to validate on.
pub struct Corpus {
    pub train: Sampler,
    pub validation: Sampler,
    /// Loss of a model that knows how often every token occurs, and nothing else.
    pub unigram: f64,
    /// Tokens to learn from.
    pub tokens: u64,
    /// Names all tokens.
    pub fingerprint: String,
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
    folder: &RunFolder,
    sequence: usize,
    seed: u64,
) -> Result<Corpus> {
    let (dataset, summary) = match &options.data {
        Some(prefix) if is_pair(prefix) => {
            if let Some(key) = &options.key {
                bail!(
                    "--key {key} names a field of JSONL, and {} is a dataset of tokens; leave out --key",
                    prefix.display()
                );
            }
            (Dataset::open(prefix)?, format!("{}.bin", prefix.display()))
        }
        _ => tokenized(options, tokenizer, folder)?,
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
        fingerprint: dataset.fingerprint(),
        summary: format!(
            "{summary}: {tokens} tokens to learn, {} to validate",
            validation.tokens()
        ),
    })
}

/// The run keeps its tokens, so that a resumed run sees the same ones although files may have changed since.
fn tokenized(
    options: &Options,
    tokenizer: &Tokenizer,
    folder: &RunFolder,
) -> Result<(Dataset, String)> {
    let kept = options.out().join("data");
    if options.resume && kept.join("corpus.idx").exists() {
        return continued(options, &kept);
    }
    let (files, what) = match (&options.data, &options.key) {
        (Some(path), _) => (vec![path.clone()], path.display().to_string()),
        (None, Some(key)) => bail!("--key {key} names a field of --data's JSONL; give --data"),
        (None, None) => {
            let found = default_corpus(DEFAULT_BYTES)?;
            let what = found.to_string();
            (found.files, what)
        }
    };
    let filter = filter(options, &files);
    let staged = folder.staging().join("data");
    let prefix = staged.join("corpus");
    let counts = tokenize_corpus(&files, &filter, tokenizer, &prefix, |_| ())
        .with_context(|| match &options.data {
            Some(_) => format!("--data (--key {})", filter.key),
            None => "the text found here".into(),
        })?
        .counts;
    if options.key.is_some() && counts.json_lines == 0 {
        bail!("--key names a field of JSONL, and there is none in {what}; leave out --key");
    }
    let note = match &options.data {
        Some(path) => source(path, options.key.as_deref()),
        None => what.clone(),
    };
    std::fs::write(staged.join(SOURCE), note).context("cannot note where the text came from")?;
    let summary = match counts.remarks() {
        remarks if remarks.is_empty() => what,
        remarks => format!("{what} ({remarks})"),
    };
    Ok((Dataset::open(&prefix)?, summary))
}

/// The tokens that the run has learned so far.
fn continued(options: &Options, kept: &Path) -> Result<(Dataset, String)> {
    let note = kept.join(SOURCE);
    let before = std::fs::read_to_string(&note)
        .with_context(|| format!("cannot read {}", note.display()))?;
    if let Some(path) = &options.data {
        // Before paths were noted in full, they were noted as given.
        let given = path.display().to_string();
        if before != source(path, options.key.as_deref()) && before != given {
            bail!(
                "the run in {} learns other text than {given}: {before}; leave out --data and --key, or start a new run without --resume",
                options.out().display(),
            );
        }
    }
    let dataset = Dataset::open(kept.join("corpus"))?;
    Ok((dataset, "the tokens of the run before".into()))
}

/// A single file is cut into at least some fifty documents, so that some can be kept for validation.
fn filter(options: &Options, files: &[PathBuf]) -> Filter {
    let mut filter = Filter::default();
    if let Some(key) = &options.key {
        filter.key = key.clone();
    }
    if let [file] = files
        && let Ok(metadata) = file.metadata()
        && metadata.is_file()
    {
        filter.longest = (metadata.len() / 50).clamp(1024, filter.longest);
    }
    filter
}

/// How a run notes the text it was given.
fn source(path: &Path, key: Option<&str>) -> String {
    let path = absolute(path.components().collect());
    match key {
        Some(key) => format!("{} --key {key}", path.display()),
        None => path.display().to_string(),
    }
}

/// Whether a path is the prefix of a dataset; of half of one as well, unless it is a file or folder itself.
fn is_pair(prefix: &Path) -> bool {
    let half = || !prefix.exists() && with_suffix(prefix, ".bin").exists();
    with_suffix(prefix, ".idx").exists() || half()
}

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;
    use tempfile::TempDir;

    use super::*;
    use crate::folder;

    const TEXT: &str = "It is a text of some lines, which is long enough.\n";

    struct Place(TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            place.put("text.txt", &TEXT.repeat(200));
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        fn options(&self, data: Option<&str>, more: &[&str]) -> Options {
            let out = self.path("run").display().to_string();
            let mut arguments = vec!["gpt_1t".to_string(), "--out".into(), out];
            if let Some(data) = data {
                arguments.extend(["--data".into(), self.path(data).display().to_string()]);
            }
            arguments.extend(more.iter().map(|argument| argument.to_string()));
            Options::try_parse_from(arguments).unwrap()
        }

        /// What a run with these options learns; it starts if `start`.
        fn load(&self, options: &Options, start: bool) -> Result<Corpus, String> {
            let out = options.out();
            let mut folder = match options.resume {
                true => RunFolder::resume(&out),
                false => RunFolder::claim(&out),
            }
            .unwrap();
            let corpus = load(options, &Tokenizer::bytes(), &folder, 16, 1)
                .map_err(|error| format!("{error:#}"))?;
            if start {
                folder::start(&mut folder, options, &options.settings().unwrap()).unwrap();
            }
            Ok(corpus)
        }
    }

    #[test]
    fn a_run_that_goes_on_learns_the_tokens_that_it_began_with() {
        let place = Place::new();
        let first = place.options(Some("text.txt"), &[]);
        let refused = place.load(&first, false).unwrap();
        assert!(
            !place.path("run").exists(),
            "a start that was refused left something"
        );
        let begun = place.load(&first, true).unwrap();
        assert_eq!(refused.fingerprint, begun.fingerprint);

        place.put("text.txt", &TEXT.to_uppercase().repeat(200));
        for data in [None, Some("text.txt"), Some("./text.txt")] {
            let again = place.options(data, &["--resume"]);
            let again = place.load(&again, true).unwrap();
            assert_eq!(again.fingerprint, begun.fingerprint);
        }
        place.put("other.txt", TEXT);
        let other = place.options(Some("other.txt"), &["--resume"]);
        let refusal = place.load(&other, true).err().unwrap();
        assert!(refusal.contains("learns other text"), "{refusal}");

        // Without its tokens the text is read again, and the checkpoint will tell that it is another one.
        fs::remove_dir_all(place.path("run/data")).unwrap();
        let lost = place.options(Some("text.txt"), &["--resume"]);
        let lost = place.load(&lost, false).unwrap();
        assert_eq!(lost.tokens, begun.tokens);
        assert_ne!(lost.fingerprint, begun.fingerprint);
        assert!(!place.path("run/data").exists());
    }

    #[test]
    fn a_key_that_names_nothing_is_refused() {
        let place = Place::new();
        let row = "{\"content\": \"some text that is long enough to be learned\"}\n";
        place.put("rows.json", &row.repeat(100));
        let key = ["--key", "content"];
        for (data, said) in [
            (Some("text.txt"), "there is none"),
            (None, "give --data"),
            (Some("pair"), "leave out --key"),
        ] {
            place.put("pair.idx", "");
            let refusal = place.load(&place.options(data, &key), true).err().unwrap();
            assert!(
                refusal.contains("--key") && refusal.contains(said),
                "{refusal}"
            );
            assert!(!place.path("run").exists());
        }
        let refusal = place
            .load(&place.options(Some("rows.json"), &[]), true)
            .err()
            .unwrap();
        assert!(
            refusal.contains("--key text") && refusal.contains("but: content"),
            "{refusal}"
        );
        place
            .load(&place.options(Some("rows.json"), &key), true)
            .unwrap();
        let resumed = |key| place.load(&place.options(Some("rows.json"), key), true);
        resumed(&["--resume", "--key", "content"]).unwrap();
        let refusal = resumed(&["--resume", "--key", "other"]).err().unwrap();
        assert!(refusal.contains("learns other text"), "{refusal}");
    }
}
