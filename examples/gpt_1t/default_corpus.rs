//! Real text without a network, for the first run: what every machine that compiled this program holds.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use burn_frontier::data::permutation::mix;
use burn_frontier::data::text;
use burn_frontier::utf8;

/// Longer files are tables and generated code, of which a small corpus would consist entirely.
const LARGEST_FILE: u64 = 64 << 10;

/// Text found on this machine; prints as one sentence that says what and where.
#[derive(Debug)]
pub struct DefaultCorpus {
    /// The chosen files, well mixed, for [`text::documents`].
    pub files: Vec<PathBuf>,
    /// Where they lie.
    pub sources: Vec<Source>,
}

/// What one place contributes to a [`DefaultCorpus`].
#[derive(Debug)]
pub struct Source {
    /// The place, in words.
    pub name: &'static str,
    /// The place, as a folder.
    pub folder: PathBuf,
    /// Files chosen.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// At most `limit` bytes of Rust and Markdown from this project, the Rust toolchain, and the sources of the crates
/// that Cargo fetched, whichever exist.
///
/// Files are taken in the order of a hash of their name, so the choice is the same as long as the folders are, and
/// any contiguous part of the corpus looks like the rest. Only one version of a crate is used and no file twice,
/// so that held-out text is not a copy of training text.
///
/// # Errors
/// None of the places exists or holds text.
pub fn default_corpus(limit: u64) -> Result<DefaultCorpus> {
    let mut chosen = Vec::new();
    let mut sources = Vec::new();
    let mut contents = HashSet::new();
    let mut left = limit;
    let places = [
        ("this project", project()),
        ("the Rust toolchain", toolchain()),
        ("Cargo's registry", registry()),
    ];
    for (name, place) in places {
        let Some((folder, roots)) = place else {
            continue;
        };
        let before = chosen.len();
        let bytes = choose(&folder, &roots, left, &mut contents, &mut chosen);
        left -= bytes;
        let files = (chosen.len() - before) as u64;
        if files > 0 {
            sources.push(Source {
                name,
                folder,
                files,
                bytes,
            });
        }
    }
    if chosen.is_empty() {
        bail!(
            "no text of at most {limit} bytes found in this project, the Rust toolchain or Cargo's registry; name a file or folder of text with --data"
        );
    }
    chosen.sort();
    let files = chosen.into_iter().map(|(_, path)| path).collect();
    Ok(DefaultCorpus { files, sources })
}

impl fmt::Display for DefaultCorpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: u64 = self.sources.iter().map(|source| source.bytes).sum();
        write!(
            f,
            "{:.1} MB of text in {} files",
            bytes as f64 / 1e6,
            self.files.len()
        )?;
        for (i, source) in self.sources.iter().enumerate() {
            let (separator, mb) = (if i == 0 { ": " } else { ", " }, source.bytes as f64 / 1e6);
            let (files, name) = (source.files, source.name);
            write!(
                f,
                "{separator}{mb:.1} MB in {files} files of {name} ({})",
                source.folder.display()
            )?;
        }
        Ok(())
    }
}

/// Adds the files below `roots` to `chosen`, in the order of the hash of their path in `folder`, until `left` bytes
/// are used up; returns the bytes used.
fn choose(
    folder: &Path,
    roots: &[PathBuf],
    left: u64,
    contents: &mut HashSet<(u64, u32)>,
    chosen: &mut Vec<(u64, PathBuf)>,
) -> u64 {
    if left == 0 {
        return 0;
    }
    let extensions = ["rs".to_string(), "md".to_string()];
    // What cannot be listed or read is left out: this corpus is whatever is there.
    let mut candidates: Vec<(u64, PathBuf)> = text::files(roots, &extensions)
        .flatten()
        .map(|path| (order(folder, &path), path))
        .collect();
    candidates.sort();
    let mut used = 0;
    for (order, path) in candidates {
        let Ok(length) = path.metadata().map(|file| file.len()) else {
            continue;
        };
        if length == 0 || length > LARGEST_FILE.min(left - used) {
            continue;
        }
        let Ok(text) = utf8::read(&path) else {
            continue;
        };
        let length = text.len() as u64;
        let fits = length <= left - used && !text.contains('\0');
        if fits && contents.insert((length, crc32fast::hash(text.as_bytes()))) {
            used += length;
            chosen.push((order, path));
        }
    }
    used
}

fn order(folder: &Path, path: &Path) -> u64 {
    let name = path.strip_prefix(folder).unwrap_or(path);
    mix(u64::from(crc32fast::hash(
        name.as_os_str().as_encoded_bytes(),
    )))
}

/// The workspace that `cargo run` is in: nowhere else, lest a program started at home reads a whole home folder.
fn project() -> Option<(PathBuf, Vec<PathBuf>)> {
    let start = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .or_else(|| std::env::current_dir().ok())?;
    let root = start
        .ancestors()
        .find(|folder| folder.join("Cargo.lock").is_file())?;
    Some((root.to_path_buf(), vec![root.to_path_buf()]))
}

/// The toolchain's documents, and the standard library where the component rust-src is installed.
fn toolchain() -> Option<(PathBuf, Vec<PathBuf>)> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    let root = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    let folders = ["share/doc", "lib/rustlib/src"].map(|folder| root.join(folder));
    let present: Vec<_> = folders
        .into_iter()
        .filter(|folder| folder.is_dir())
        .collect();
    (!present.is_empty()).then_some((root, present))
}

/// One version of each crate whose source Cargo has unpacked.
fn registry() -> Option<(PathBuf, Vec<PathBuf>)> {
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")))?;
    let root = cargo.join("registry").join("src");
    let mut versions: Vec<PathBuf> = folders(&root)
        .iter()
        .flat_map(|index| folders(index))
        .collect();
    versions.sort();
    let mut crates = BTreeMap::new();
    for folder in versions {
        crates.insert(crate_name(&folder), folder);
    }
    let present: Vec<_> = crates.into_values().collect();
    (!present.is_empty()).then_some((root, present))
}

/// `serde` of `…/serde-1.0.2`: what stands before the first hyphen that a digit follows.
fn crate_name(folder: &Path) -> String {
    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let version = name
        .match_indices('-')
        .find(|(at, _)| name[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
    match version {
        Some((at, _)) => name[..at].to_string(),
        None => name,
    }
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_that_builds_this_has_a_default_corpus() {
        let limit = 300_000;
        let corpus = default_corpus(limit).unwrap();
        let bytes: u64 = corpus.sources.iter().map(|source| source.bytes).sum();
        assert!(bytes > 0 && bytes <= limit, "{corpus}");
        assert!(corpus.to_string().contains("MB of text in"), "{corpus}");
        assert_eq!(default_corpus(limit).unwrap().files, corpus.files);
        let mut found = text::documents(&corpus.files, &text::Filter::default());
        let read: u64 = found
            .by_ref()
            .map(|document| document.unwrap().text.len() as u64)
            .sum();
        assert_eq!((read, found.counts().skipped), (bytes, 0));
        assert!(default_corpus(0).is_err());
    }
}
