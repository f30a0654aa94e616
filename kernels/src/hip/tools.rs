//! The programs that prove things, and the folder where their results are kept.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The oldest LLVM that compiles every kernel, and the one that the figures in `isa.md` are from.
pub const LLVM: u32 = 19;
/// Newer releases to look for.
const NEWER: std::ops::RangeInclusive<u32> = LLVM + 1..=LLVM + 11;

/// A program of LLVM: the release that figures are from if it is there, else a newer one, else the one without a number.
fn llvm_program(name: &str, package: &str) -> Result<PathBuf> {
    let numbered = std::iter::once(LLVM)
        .chain(NEWER)
        .map(|release| format!("{name}-{release}"));
    let found = numbered
        .chain([name.to_owned()])
        .find_map(|name| on_path(&name));
    found.ok_or_else(|| {
        Error::Tool(format!(
            "neither {name}-{LLVM} nor a newer {name} is on PATH; install it: apt-get install {package}-{LLVM}"
        ))
    })
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The C++ compiler: clang 19 or newer.
///
/// # Errors
/// It is not installed; the message names the package.
pub fn clang() -> Result<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    remembered(&FOUND, || llvm_program("clang++", "clang"))
}

/// LLVM's machine code analyser.
///
/// # Errors
/// It is not installed; the message names the package.
pub fn llvm_mca() -> Result<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    remembered(&FOUND, || llvm_program("llvm-mca", "llvm"))
}

/// LLVM's symbolizer, which gives the reports of sanitizers their lines.
pub fn symbolizer() -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    remembered(&FOUND, || llvm_program("llvm-symbolizer", "llvm")).ok()
}

/// AMD's mathematical functions as LLVM bitcode, which hipRTC links too.
///
/// # Errors
/// They are not installed; the message names the package.
pub fn device_library() -> Result<&'static Path> {
    const FOLDERS: [&str; 2] = [
        "/usr/lib/x86_64-linux-gnu/amdgcn/bitcode",
        "/opt/rocm/amdgcn/bitcode",
    ];
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    remembered(&FOUND, || {
        let mut files = FOLDERS
            .iter()
            .map(|folder| Path::new(folder).join("ocml.bc"));
        files.find(|file| file.is_file()).ok_or_else(|| {
            Error::Tool(format!(
                "ocml.bc is not in {}; install it: apt-get install rocm-device-libs",
                FOLDERS.join(" or ")
            ))
        })
    })
}

fn remembered(
    found: &'static OnceLock<Result<PathBuf, String>>,
    search: impl FnOnce() -> Result<PathBuf>,
) -> Result<&'static Path> {
    let found = found.get_or_init(|| search().map_err(|error| error.to_string()));
    found
        .as_deref()
        .map_err(|message| Error::Tool(message.clone()))
}

/// A folder for what can be made again: below Cargo's target folder, or the system's for temporary files.
///
/// # Errors
/// It cannot be created.
pub fn cache() -> Result<PathBuf> {
    // Cargo marks its target folder so that backups leave it out.
    let target = env::current_exe().ok().and_then(|program| {
        let marked = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
        program.ancestors().find(marked).map(Path::to_owned)
    });
    let folder = target
        .unwrap_or_else(env::temp_dir)
        .join("frontier-kernels");
    fs::create_dir_all(&folder).map_err(|error| cannot("create", &folder, &error))?;
    Ok(folder)
}

/// The file of this content in `folder`: if it is not there, `make` writes one, which appears all at once. Threads wait for
/// the one that makes it; another process may make it too.
pub fn made_once(
    folder: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    static MAKING: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let file = folder.join(name);
    let mut making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let turn = making.entry(file.clone()).or_default().clone();
    drop(making);
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    if !file.exists() {
        let parent = file.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|error| cannot("create", parent, &error))?;
        let made = Scratch::new(folder);
        make(made.path())?;
        fs::rename(made.path(), &file).map_err(|error| cannot("create", &file, &error))?;
    }
    Ok(file)
}

/// A short name for what `content` holds.
pub fn fingerprint(content: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The path of a temporary file, which is removed in the end.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A path in `folder` that no other process or thread uses. The file does not exist yet.
    pub fn new(folder: &Path) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(folder.join(format!("scratch-{}-{count}", std::process::id())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its bytes.
    pub fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.0).map_err(|error| cannot("read", &self.0, &error))
    }

    /// Replaces its bytes.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        write(&self.0, bytes)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may have been renamed, or never written.
        let _ = fs::remove_file(&self.0);
    }
}

/// How a program ended, and what it wrote to its standard outputs.
pub struct Ended {
    /// Its exit status; `None` if it was stopped at the time limit.
    pub status: Option<ExitStatus>,
    /// What it wrote.
    pub output: String,
}

/// Runs a program to its end, or stops it after `limit`. Its outputs go to a file in `folder`, so that no pipe fills up.
pub fn run(command: &mut Command, folder: &Path, limit: Duration) -> Result<Ended> {
    let output = Scratch::new(folder);
    let program = PathBuf::from(command.get_program());
    let mut start = || {
        let file = fs::File::create(output.path())?;
        let mut child = command.stdout(file.try_clone()?).stderr(file).spawn()?;
        wait(&mut child, limit)
    };
    let status = start().map_err(|error| cannot("run", &program, &error))?;
    let output = String::from_utf8_lossy(&output.read()?).into_owned();
    Ok(Ended { status, output })
}

fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        sleep(pause);
        pause = (2 * pause).min(Duration::from_millis(10));
    }
}

/// Runs a compiler.
///
/// # Errors
/// What the compiler wrote, if it failed: `kernel` does not compile.
pub fn compile(command: &mut Command, folder: &Path, kernel: &str, limit: Duration) -> Result<()> {
    let ended = run(command, folder, limit)?;
    match ended.status {
        Some(status) if status.success() => Ok(()),
        Some(_) => Err(Error::Run {
            kernel: kernel.to_owned(),
            reason: format!("does not compile:\n{}", first_lines(&ended.output)),
        }),
        None => Err(Error::Run {
            kernel: kernel.to_owned(),
            reason: format!("the compiler was stopped after {limit:?}"),
        }),
    }
}

/// As much of a program's output as a message can hold.
pub fn first_lines(output: &str) -> String {
    output.lines().take(30).collect::<Vec<_>>().join("\n")
}

/// Writes a file.
pub fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).map_err(|error| cannot("write", file, &error))
}

/// What could not be done to a file or folder.
pub fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::Tool(format!("cannot {what} {}: {error}", path.display()))
}
