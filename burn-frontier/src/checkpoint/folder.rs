//! A folder of checkpoints: names, and the order of renames that leaves a whole checkpoint at every moment.
//!
//! `step-00000100` is whole. `step-00000100.tmp` is being written or removed, and is never read.
//! `step-00000100.old` is whole too: it is about to be replaced by a new checkpoint of the same step.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::manifest;
use crate::error::{Error, Result};

/// What a name in the folder promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A whole checkpoint.
    Whole,
    /// A whole checkpoint that is being replaced.
    Old,
    /// Anything, to be ignored.
    Temporary,
}

/// A checkpoint's folder, by its name.
#[derive(Debug)]
pub(super) struct Entry {
    /// The step it is of.
    pub(super) step: u64,
    /// What the name promises.
    pub(super) kind: Kind,
    /// The folder.
    pub(super) path: PathBuf,
}

/// Where the checkpoint of a step lies.
pub(super) fn whole(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step:08}"))
}

/// Where it is written.
pub(super) fn temporary(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step:08}.tmp"))
}

fn old(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step:08}.old"))
}

fn parse(name: &str) -> Option<(u64, Kind)> {
    let (stem, kind) = match name.split_once('.') {
        None => (name, Kind::Whole),
        Some((stem, "old")) => (stem, Kind::Old),
        Some((stem, "tmp")) => (stem, Kind::Temporary),
        Some(_) => return None,
    };
    let step = stem.strip_prefix("step-")?.parse().ok()?;
    (format!("step-{step:08}") == stem).then_some((step, kind))
}

/// The checkpoints in a folder, newest step first, and of the same step the whole one first.
pub(super) fn list(folder: &Path) -> Result<Vec<Entry>> {
    let failed = |e| Error::io("list the folder", folder, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some((step, kind)) = entry.file_name().to_str().and_then(parse) else {
            continue;
        };
        let path = entry.path();
        if path.is_dir() {
            found.push(Entry { step, kind, path });
        }
    }
    found.sort_by_key(|entry| (Reverse(entry.step), entry.kind));
    Ok(found)
}

/// Fails if one of the checkpoints in a folder is of a newer version of this library.
pub(super) fn refuse_newer(folder: &Path) -> Result<()> {
    list(folder)?
        .iter()
        .filter(|entry| entry.kind != Kind::Temporary)
        .try_for_each(|entry| manifest::refuse_newer(&entry.path))
}

/// Clears up behind a writer that was stopped: removes what is temporary, and finishes or undoes a replacement.
pub(super) fn recover(disk: Disk<'_>, folder: &Path) -> Result<()> {
    let (temporary, rest): (Vec<Entry>, Vec<Entry>) = list(folder)?
        .into_iter()
        .partition(|entry| entry.kind == Kind::Temporary);
    for entry in temporary {
        disk.remove_folder(&entry.path)?;
    }
    for entry in rest.into_iter().filter(|entry| entry.kind == Kind::Old) {
        let replacement = whole(folder, entry.step);
        if replacement.exists() {
            // Its name may not be durable yet.
            disk.sync_folder(folder)?;
            discard(disk, folder, &entry)?;
        } else {
            disk.rename(&entry.path, &replacement)?;
        }
    }
    Ok(())
}

/// Gives the written temporary checkpoint of a step its name.
pub(super) fn publish(disk: Disk<'_>, folder: &Path, step: u64) -> Result<PathBuf> {
    let (target, aside) = (whole(folder, step), old(folder, step));
    disk.sync_folder(&temporary(folder, step))?;
    let replaces = target.exists();
    if replaces {
        disk.rename(&target, &aside)?;
        disk.sync_folder(folder)?;
    }
    disk.rename(&temporary(folder, step), &target)?;
    disk.sync_folder(folder)?;
    if replaces {
        let kind = Kind::Old;
        let entry = Entry {
            step,
            kind,
            path: aside,
        };
        warn_of(discard(disk, folder, &entry));
    }
    Ok(target)
}

/// Removes checkpoints until `keep` are left (0: all are kept): the one of `step`, then the newest ones.
pub(super) fn prune(disk: Disk<'_>, folder: &Path, step: u64, keep: usize) -> Result<()> {
    if keep == 0 {
        return Ok(());
    }
    let others = list(folder)?
        .into_iter()
        .filter(|entry| entry.kind == Kind::Whole && entry.step != step);
    for entry in others.skip(keep - 1) {
        warn_of(discard(disk, folder, &entry));
    }
    Ok(())
}

/// Removes a whole checkpoint: it loses its name first, so that a half removed one is never taken for whole.
fn discard(disk: Disk<'_>, folder: &Path, entry: &Entry) -> Result<()> {
    let doomed = temporary(folder, entry.step);
    if doomed.exists() {
        disk.remove_folder(&doomed)?;
    }
    disk.rename(&entry.path, &doomed)?;
    disk.remove_folder(&doomed)
}

/// Reports a failure to remove what is no longer needed. The checkpoint just written is whole all the same.
pub(super) fn warn_of(removal: Result<()>) {
    if let Err(error) = removal {
        tracing::warn!("a checkpoint that is no longer needed stays: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_are_checkpoints() {
        assert_eq!(parse("step-00000100"), Some((100, Kind::Whole)));
        assert_eq!(
            parse("step-123456789012"),
            Some((123_456_789_012, Kind::Whole))
        );
        assert_eq!(parse("step-00000100.old"), Some((100, Kind::Old)));
        assert_eq!(parse("step-00000100.tmp"), Some((100, Kind::Temporary)));
        for other in [
            "step-100",
            "step-+0000100",
            "step-00000100.bak",
            "step-",
            "notes",
            "step-00000100.tmp.old",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
