//! The text files of the workspace.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A file that is text.
pub struct TextFile {
    /// Path relative to the workspace, with `/` between names.
    pub path: String,
    /// All of it.
    pub text: String,
}

impl TextFile {
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }
}

/// Every text file below `root`, in order of path, without Git's own and what lies in the folders that `.gitignore`
/// names by lines such as `/target`.
///
/// Git is not asked, because an exported copy of the sources must pass too.
pub fn collect(root: &Path) -> Result<Vec<TextFile>> {
    let ignored = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
    let mut skipped: Vec<&str> = ignored
        .lines()
        .filter_map(|line| line.trim().strip_prefix('/'))
        .map(|name| name.trim_end_matches('/'))
        .collect();
    skipped.push(".git");
    let mut files = Vec::new();
    walk(root, "", &skipped, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(root: &Path, below: &str, skipped: &[&str], files: &mut Vec<TextFile>) -> Result<()> {
    let folder = root.join(below);
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = match below {
            "" => name.into_owned(),
            _ => format!("{below}/{name}"),
        };
        if skipped.contains(&path.as_str()) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(root, &path, skipped, files)?;
        } else if kind.is_file() {
            let bytes = fs::read(entry.path()).with_context(|| format!("cannot read {path}"))?;
            files.extend(
                String::from_utf8(bytes)
                    .ok()
                    .map(|text| TextFile::new(path, text)),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_folders_and_binaries_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        write(".gitignore", b"/target\n/runs/\n");
        for path in [
            "target/a.rs",
            "runs/b.txt",
            ".git/config",
            "src/target/c.rs",
        ] {
            write(path, b"text");
        }
        write("picture.bin", &[0xff, 0xfe]);
        let files = collect(root.path()).unwrap();
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [".gitignore", "src/target/c.rs"]);
    }
}
