//! The folder that a run writes to: marked as one, locked while a process writes to it, an older run in it kept beside.
//!
//! ```no_run
//! # use burn_frontier::{Result, run_folder::RunFolder};
//! # fn main() -> Result<()> {
//! let mut folder = RunFolder::claim("runs/mine".as_ref())?; // refuses what is not ours, and what another process holds
//! // Everything that can still be refused comes here; what it must write goes to `folder.staging()`.
//! let kept = folder.start()?; // only now an older run gives way
//! # Ok(())
//! # }
//! ```

mod lock;
mod place;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::observe::metrics::read_metrics;

/// The file that marks a folder as a run's, and that its process locks. Not CACHEDIR.TAG: backups leave out what that marks.
pub const MARK: &str = ".burn-frontier-run";
/// What a start has written before it is known to succeed.
const STAGING: &str = ".starting";
/// Files that a plan leaves in the folder of the run to come.
const PLANS: [&str; 2] = ["plan.html", "plan.json"];
/// What runs wrote before folders were marked.
const UNMARKED: [&str; 8] = [
    "checkpoints",
    "config.toml",
    "data",
    "loss.svg",
    "metrics.jsonl",
    "pipeline.svg",
    "tensorboard",
    "trace.json",
];
/// What lies in a folder that people call empty.
const NOTHING: [&str; 4] = [".DS_Store", ".gitignore", ".gitkeep", "lost+found"];
const REMEDY: &str = "name a new or an empty folder for the run";

/// A run's folder, held by this process until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct RunFolder {
    /// Without links, `.` and `..`.
    path: PathBuf,
    /// Locked, where the file system has locks.
    mark: File,
    continues: bool,
    started: bool,
    /// What a start that is refused takes away again.
    made: Made,
}

/// What claiming a folder added to the disk.
#[derive(Debug, Default)]
struct Made {
    folder: bool,
    mark: bool,
}

impl RunFolder {
    /// Takes a folder for a new run, and makes it if needed. An older run in it stays as it is until [`RunFolder::start`];
    /// dropped before, this leaves everything as it was.
    ///
    /// # Errors
    /// The folder has content and is no run's, another process holds it, or it has an older run and cannot be renamed.
    pub fn claim(path: &Path) -> Result<Self> {
        let exists = path.try_exists().unwrap_or(true);
        check(path)?;
        fs::create_dir_all(path).map_err(|e| Error::io("make the folder", path, e))?;
        let mut made = Made {
            folder: !exists,
            ..Made::default()
        };
        let path = resolved(path)?;
        let found = lock::take(&path, &mut made.mark);
        let mark = found.inspect_err(|_| remove_if(made.folder, &path))?;
        let folder = Self {
            path,
            mark,
            continues: false,
            started: false,
            made,
        };
        folder.clear_staging()?;
        if folder.has_older_run()? {
            place::check_can_be_renamed(&folder.path)?;
        }
        Ok(folder)
    }

    /// Takes the folder of a run that goes on.
    ///
    /// # Errors
    /// The folder is no run's, or another process holds it.
    pub fn resume(path: &Path) -> Result<Self> {
        let checkpoints = path.join("checkpoints");
        if !is_run(path) && !matches!(Checkpoint::newest(&checkpoints), Ok(Some(_))) {
            return Err(Error::config(
                format!("there is no run in {} to go on with", path.display()),
                "name the folder of a run, or start a new one",
            ));
        }
        let path = resolved(path)?;
        let mut made = Made::default();
        let mark = lock::take(&path, &mut made.mark)?;
        let folder = Self {
            path,
            mark,
            continues: true,
            started: false,
            made,
        };
        folder.clear_staging()?;
        Ok(folder)
    }

    /// Where a start writes what takes effect only with [`RunFolder::start`]: its entries become the run's. Not made yet.
    pub fn staging(&self) -> PathBuf {
        self.path.join(STAGING)
    }

    /// Begins the run: an older one is renamed to the free name that is returned, and what was staged takes its place.
    ///
    /// # Errors
    /// The older run cannot be renamed, or the new folder cannot be made; the older run has its name then.
    pub fn start(&mut self) -> Result<Option<PathBuf>> {
        let mut kept = None;
        if !self.continues && self.has_older_run()? {
            let (aside, mark) = place::move_aside(&self.path, STAGING)?;
            self.mark = mark;
            kept = Some(aside);
        }
        self.started = true;
        self.publish()?;
        Ok(kept)
    }

    /// Gives what was staged its place. Nothing else has it but what a run that goes on found incomplete.
    fn publish(&self) -> Result<()> {
        let staging = self.staging();
        if !staging.exists() {
            return Ok(());
        }
        for name in names(&staging)? {
            let (from, to) = (staging.join(&name), self.path.join(&name));
            if to.is_dir() {
                fs::remove_dir_all(&to).map_err(|e| Error::io("replace", &to, e))?;
            }
            fs::rename(&from, &to).map_err(|e| Error::io("move to its place", &from, e))?;
        }
        self.clear_staging()
    }

    /// Whether anything here would mix with a new run's files.
    fn has_older_run(&self) -> Result<bool> {
        let own = [MARK, STAGING];
        let names = names(&self.path)?;
        Ok(names
            .iter()
            .any(|name| !own.contains(&name.as_str()) && !PLANS.contains(&name.as_str())))
    }

    fn clear_staging(&self) -> Result<()> {
        let staging = self.staging();
        match fs::remove_dir_all(&staging) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &staging, e))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.started {
            return;
        }
        // A start that was refused says so itself; what cannot be removed here does no harm.
        let _ = self.clear_staging();
        if self.made.mark {
            let _ = fs::remove_file(self.path.join(MARK));
        }
        remove_if(self.made.folder, &self.path);
    }
}

/// Refuses a folder that has content and is no run's: nothing there is ever renamed or written to.
///
/// # Errors
/// There is such content, or something other than a folder.
pub fn check(path: &Path) -> Result<()> {
    let about = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        about => about.map_err(|e| Error::io("look at", path, e))?,
    };
    if !path.is_dir() {
        let what = match about.is_symlink() && !path.exists() {
            true => "is a link to nothing",
            false => "is a file, not a folder",
        };
        return Err(Error::config(format!("{} {what}", path.display()), REMEDY));
    }
    let names = names(path)?;
    if names.is_empty() || is_run(path) || names.iter().all(|n| PLANS.contains(&n.as_str())) {
        return Ok(());
    }
    let more = match names.len() {
        0..=3 => String::new(),
        count => format!(" and {} more", count - 3),
    };
    Err(Error::config(
        format!(
            "{} is not the folder of a run, and not empty: it holds {}{more}",
            path.display(),
            names[..names.len().min(3)].join(", ")
        ),
        REMEDY,
    ))
}

/// Marks a folder as a run's without locking it, for what is written before the run or beside it; makes it if needed.
///
/// # Errors
/// As [`check`], or the folder cannot be written to.
pub fn mark(path: &Path) -> Result<()> {
    check(path)?;
    fs::create_dir_all(path).map_err(|e| Error::io("make the folder", path, e))?;
    let mark = path.join(MARK);
    match File::create_new(&mark) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io("create", &mark, e))
        }
        Err(_) => Ok(()),
        Ok(mut file) => lock::describe(&mut file, None).map_err(|e| Error::io("write", &mark, e)),
    }
}

/// Whether a folder is a run's: marked, or just as runs were left before folders were marked.
pub fn is_run(folder: &Path) -> bool {
    let unmarked = || {
        let log = folder.join("metrics.jsonl");
        let ours = |name: &String| UNMARKED.contains(&&**name) || PLANS.contains(&&**name);
        log.is_file()
            && names(folder).is_ok_and(|names| names.iter().all(ours))
            && read_metrics(log).is_ok_and(|records| !records.is_empty())
    };
    folder.join(MARK).is_file() || unmarked()
}

/// What a folder holds, in order.
fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io("list the folder", folder, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.retain(|name| !NOTHING.contains(&name.as_str()));
    names.sort();
    Ok(names)
}

/// The folder itself: a link to it stays where it is, whatever happens to the folder.
fn resolved(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|e| Error::io("find the folder", path, e))
}

/// Removes a folder that nobody wrote to.
fn remove_if(made: bool, folder: &Path) {
    if made {
        let _ = fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests;
