//! The rules of the source that neither rustfmt, clippy nor cargo-deny checks.

mod circles;
mod documents;
mod files;
mod manifests;
mod paths;

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};

use files::TextFile;

/// Lines that a source file may have.
const MAX_LINES: usize = 500;
/// Endings of what counts as a source file.
const SOURCE: [&str; 7] = [".rs", ".hip", ".h", ".hpp", ".cpp", ".py", ".sh"];

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// The file, relative to the workspace.
    path: String,
    /// The line, counted from 1.
    line: usize,
    /// What is wrong, and what to do.
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Checks every rule on the workspace at `root`, and fails with all that is broken.
pub fn check(root: &Path) -> Result<()> {
    let files = files::collect(root)?;
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(length(file));
        findings.extend(paths::machine_paths(file));
    }
    findings.extend(circles::check(&files));
    findings.extend(manifests::check(&files)?);
    findings.extend(documents::check(&files));
    if findings.is_empty() {
        eprintln!("structure: {} files, nothing to report", files.len());
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("structure: {} rules broken", findings.len())
}

fn length(file: &TextFile) -> Option<Finding> {
    let lines = file.text.lines().count();
    let is_source = SOURCE.iter().any(|ending| file.path.ends_with(ending));
    (is_source && lines > MAX_LINES).then(|| {
        let what = format!("{lines} lines, at most {MAX_LINES}; split it by concept");
        Finding::new(&file.path, MAX_LINES + 1, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_file_above_500_lines_is_reported() {
        let of = |path: &str, lines: usize| length(&TextFile::new(path, "\n".repeat(lines)));
        assert_eq!(of("a.rs", 500), None);
        assert_eq!(of("Cargo.lock", 501), None);
        assert_eq!(of("a.rs", 501).unwrap().line, 501);
        assert!(of("kernels/gemm.hip", 501).is_some());
    }
}
