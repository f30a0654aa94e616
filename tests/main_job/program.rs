//! The program, run in a folder of its own on a small text.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// A folder to run in, with a text to learn.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let line = |i: u32| {
            format!(
                "pub fn number_{}() -> u32 {{ {} }}\n",
                i * 7 % 101,
                i * i % 1009
            )
        };
        let content: String = (0..2000).map(line).collect();
        fs::write(folder.path().join("text.rs"), content).unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where runs with `--out run` write.
    pub fn out(&self) -> PathBuf {
        self.path().join("run")
    }

    /// The program with these flags.
    pub fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(program());
        // Cargo's own variable would make the program name `cargo run` where it names itself.
        command
            .args(flags)
            .current_dir(self.path())
            .env_remove("CARGO")
            .env_remove("RUST_LOG");
        command
    }

    pub fn run(&self, flags: &[&str]) -> Output {
        self.command(flags).output().unwrap()
    }

    /// The program on a small model and one rank; flags may say otherwise.
    pub fn small_command(&self, flags: &[&str]) -> Command {
        let mut all = vec![
            "--data",
            "text.rs",
            "--hidden",
            "32",
            "--heads",
            "2",
            "--sequence",
            "32",
        ];
        for (flag, value) in [("--layers", "1"), ("--tp", "1"), ("--pp", "1")] {
            if !flags.contains(&flag) {
                all.extend([flag, value]);
            }
        }
        all.extend(flags);
        self.command(&all)
    }

    pub fn small(&self, flags: &[&str]) -> Output {
        self.small_command(flags).output().unwrap()
    }

    /// A field of every record of the log.
    pub fn metrics(&self, field: &str) -> Vec<f64> {
        metrics(&self.out(), field)
    }

    /// Steps of the checkpoints.
    pub fn checkpoints(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.out().join("checkpoints")).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        let mut steps: Vec<u64> = entries
            .map(|entry| name(entry).strip_prefix("step-").unwrap().parse().unwrap())
            .collect();
        steps.sort_unstable();
        steps
    }
}

/// A field of every whole record of the log in a run's folder; none if there is no log yet.
pub fn metrics(out: &Path, field: &str) -> Vec<f64> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    let records = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records
        .filter_map(|record| record[field].as_f64())
        .collect()
}

/// The program's exit code; none, if a signal killed it, is a failure of the test.
pub fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

/// What it wrote to standard output.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it wrote to standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The example, built as this test was. Cargo builds an example that has tests as a test, not as a program.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let features = [
            ("wgpu", cfg!(feature = "wgpu")),
            ("cuda", cfg!(feature = "cuda")),
            ("rocm", cfg!(feature = "rocm")),
            ("fusion", cfg!(feature = "fusion")),
        ];
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        build.args(["build", "--quiet", "--example", "gpt_1t"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        for (feature, enabled) in features {
            if enabled {
                build.args(["--features", feature]);
            }
        }
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(
            build.status().unwrap().success(),
            "cannot build the example"
        );
        let test = std::env::current_exe().unwrap();
        let target = test.parent().and_then(Path::parent).unwrap();
        let name = format!("gpt_1t{}", std::env::consts::EXE_SUFFIX);
        target.join("examples").join(name)
    })
}
