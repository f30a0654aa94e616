//! Making room: an older run's folder gets another name, in one step that can be undone.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{MARK, lock};
use crate::error::{Error, Result};

const REMEDY: &str = "move the older run away, or name another folder for the new one";

/// Refuses what the system would refuse later, when the start has done its work.
pub(super) fn check_can_be_renamed(folder: &Path) -> Result<()> {
    let refused = |why: &str| {
        let folder = folder.display();
        let what = format!("{folder} has an older run, and cannot be renamed to keep it: {why}");
        Err(Error::config(what, REMEDY))
    };
    let Some(parent) = folder.parent() else {
        return refused("it is the root of the file system");
    };
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    if here.is_ok_and(|here| here.starts_with(folder)) {
        return refused("this program was started in it");
    }
    if is_mounted(folder, parent) {
        return refused("a file system is mounted there");
    }
    let free = reserve(folder)?;
    fs::remove_dir(&free).map_err(|e| Error::io("remove", &free, e))
}

/// Renames the folder, and makes a new one of its name with what is `staged` in the old one: its other name, and the
/// new one's lock.
pub(super) fn move_aside(folder: &Path, staged: &str) -> Result<(PathBuf, File)> {
    // A rename replaces an empty folder: so nobody else gets the free name in between.
    let aside = reserve(folder)?;
    if let Err(e) = fs::rename(folder, &aside) {
        let _ = fs::remove_dir(&aside);
        return Err(cannot_rename(folder, &aside, &e));
    }
    match renew(folder, &aside, staged) {
        Ok(mark) => Ok((aside, mark)),
        Err(error) => {
            // Gives the older run its name again, unless another start has taken it.
            let _ = fs::remove_dir(folder);
            if let Err(e) = fs::rename(&aside, folder) {
                let (folder, aside) = (folder.display(), aside.display());
                tracing::warn!("the older run of {folder} stays in {aside}: {e}");
            }
            Err(error)
        }
    }
}

fn renew(folder: &Path, aside: &Path, staged: &str) -> Result<File> {
    fs::create_dir(folder).map_err(|e| Error::io("make the folder", folder, e))?;
    let mark = lock::take(folder, &mut false)?;
    let from = aside.join(staged);
    if from.exists()
        && let Err(e) = fs::rename(&from, folder.join(staged))
    {
        // It is this start's as long as the lock is.
        let _ = fs::remove_file(folder.join(MARK));
        return Err(Error::io("move to its place", &from, e));
    }
    Ok(mark)
}

/// An empty folder of the first free name: `run-1`, `run-2`, …
fn reserve(folder: &Path) -> Result<PathBuf> {
    for number in 1_u64.. {
        let mut name = folder.as_os_str().to_owned();
        name.push(format!("-{number}"));
        let free = PathBuf::from(name);
        match fs::create_dir(&free) {
            Ok(()) => return Ok(free),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(cannot_rename(folder, &free, &e)),
        }
    }
    Err(Error::Internal("no number is free".into()))
}

fn cannot_rename(folder: &Path, to: &Path, reason: &std::io::Error) -> Error {
    Error::config(
        format!(
            "the older run in {} cannot be kept as {}: {reason}",
            folder.display(),
            to.display()
        ),
        REMEDY,
    )
}

#[cfg(unix)]
fn is_mounted(folder: &Path, parent: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (folder.metadata(), parent.metadata()) {
        (Ok(folder), Ok(parent)) => folder.dev() != parent.dev(),
        _ => false,
    }
}

/// The rename itself says so.
#[cfg(not(unix))]
fn is_mounted(_: &Path, _: &Path) -> bool {
    false
}
