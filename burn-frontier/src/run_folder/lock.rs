//! The lock on a run's folder: the system gives it back when the process ends, killed or not.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::path::Path;

use super::MARK;
use crate::error::{Error, Result};

/// How often the mark may vanish under our hands: another start was refused, and took its mark away.
const ATTEMPTS: usize = 100;
/// What precedes the holder in the mark.
const HOLDER: &str = "Last written by ";

/// Locks the folder's mark; `made` becomes true if there was none.
pub(super) fn take(folder: &Path, made: &mut bool) -> Result<File> {
    let path = folder.join(MARK);
    let failed = |action| {
        let path = path.clone();
        move |e| Error::io(action, path, e)
    };
    for _ in 0..ATTEMPTS {
        *made = !path.exists();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("write to"))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(held(folder, &path)),
            Err(TryLockError::Error(e)) => tracing::warn!(
                "{} cannot be locked ({e}): make sure that no other run writes there",
                folder.display()
            ),
            Ok(()) => {}
        }
        if is_at(&file, &path) {
            describe(&mut file, Some(&this_process())).map_err(failed("write"))?;
            return Ok(file);
        }
    }
    Err(held(folder, &path))
}

/// Writes what the mark says to who opens it.
pub(super) fn describe(file: &mut File, holder: Option<&str>) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(
        file,
        "This folder belongs to a run of burn-frontier, which locks this file."
    )?;
    match holder {
        Some(holder) => writeln!(file, "{HOLDER}{holder}"),
        None => Ok(()),
    }
}

fn held(folder: &Path, mark: &Path) -> Error {
    let text = std::fs::read_to_string(mark).unwrap_or_default();
    let holder = text.lines().find_map(|line| line.strip_prefix(HOLDER));
    Error::config(
        format!(
            "{} writes to {} at this moment",
            holder.unwrap_or("another process"),
            folder.display()
        ),
        "wait for it or stop it, or name another folder for the run",
    )
}

fn this_process() -> String {
    let process = format!("process {}", std::process::id());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::env::var("HOSTNAME").map_err(io::Error::other))
        .unwrap_or_default();
    match host.trim() {
        "" => process,
        host => format!("{process} on {host}"),
    }
}

/// Whether the open file still has its name: it may have been removed or renamed between opening and locking it.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |about: std::fs::Metadata| (about.dev(), about.ino());
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

/// Elsewhere an open file keeps its name.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}
