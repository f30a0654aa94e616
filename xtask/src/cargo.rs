//! Running Cargo at the root of the workspace.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// The crate of the kernels, always with the same features: with others, Cargo would compile CubeCL once more.
const KERNELS: [&str; 4] = ["--package", "frontier-kernels", "--features", "wgpu"];

/// The features of every GPU at once.
const GPUS: [&str; 2] = [
    "--features",
    "burn-frontier/wgpu,burn-frontier/cuda,burn-frontier/rocm,frontier-kernels/wgpu,frontier-kernels/cuda,frontier-kernels/rocm",
];

/// The Cargo that started us, at the root of the workspace.
pub struct Cargo {
    program: OsString,
    root: PathBuf,
}

impl Cargo {
    /// Commands will run in `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            program: std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
            root: root.to_path_buf(),
        }
    }

    /// Runs one command, its output shown. Fails if it cannot start or exits with an error.
    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        self.run_with(arguments, &[])
    }

    /// Runs one command and returns its exit status and output, whichever they are.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let command = announce(arguments);
        self.command(arguments)
            .output()
            .with_context(|| format!("cannot start `{command}`"))
    }

    /// Clippy on every target of the workspace with the GPU features, as the gate runs it: what a build without them has in
    /// their place, `cargo test` compiles. And rustfmt on the stand-in for a crate of theirs, which is no member.
    pub fn clippy(&self) -> Result<()> {
        const PATCH: &str = "patches/cubecl-llvm/Cargo.toml";
        self.run(&["fmt", "--manifest-path", PATCH, "--check"])?;
        let mut all = vec!["clippy", "--workspace", "--all-targets"];
        all.extend(GPUS);
        all.extend(["--", "-D", "warnings"]);
        self.run(&all)
    }

    /// The licences, sources and versions of what the workspace depends on, by deny.toml. Where cargo-deny is not installed, a line
    /// says so.
    pub fn deny(&self) -> Result<()> {
        if !self.output(&["deny", "--version"])?.status.success() {
            eprintln!(
                "not checked: licences and sources of the dependencies; `cargo install --locked cargo-deny` installs what does"
            );
            return Ok(());
        }
        self.run(&["deny", "--locked", "check", "licenses", "bans", "sources"])
    }

    /// The library's tests and the training that compare a GPU with the CPU, and the kernels' own, on a device of this name:
    /// wgpu, which is what the graphics driver offers, cuda or rocm.
    pub fn test_gpu(&self, device: &str) -> Result<()> {
        let environment = [("GPU", device)];
        let mut all = vec!["test", "--features", device, "--lib"];
        for name in ["gpu", "kernels", "tuning"] {
            all.extend(["--test", name]);
        }
        all.extend(["--", "--nocapture"]);
        self.run_with(&all, &environment)?;
        let kernels = ["--package", "frontier-kernels", "--features", device];
        let portable = ["--test", "portable", "--", "--nocapture"];
        self.run_with(&[&["test"], &kernels[..], &portable].concat(), &environment)
    }

    /// The tests of the members that `cargo test` at the root leaves out; those of the kernels also on what
    /// the graphics driver offers.
    pub fn test_others(&self, arguments: &[&str]) -> Result<()> {
        for member in [&KERNELS[..], &["--package", "xtask"]] {
            let mut all = vec!["test"];
            all.extend(member);
            all.extend(arguments);
            self.run(&all)?;
        }
        Ok(())
    }

    /// The program that checks the kernels. It is frontier-kernels' own, so that xtask builds without CubeCL.
    pub fn hip(&self, update: bool, filter: &str) -> Result<()> {
        let mut all = vec!["run", "--quiet"];
        all.extend(KERNELS);
        all.extend(["--bin", "hip", "--"]);
        all.extend(update.then_some("--update"));
        all.extend((!filter.is_empty()).then_some(filter));
        self.run(&all)
    }

    /// An example of burn-frontier: xtask itself builds without Burn.
    pub fn example(&self, name: &str, arguments: &[String]) -> Result<()> {
        let mut all = vec!["run", "--quiet", "--example", name, "--"];
        all.extend(arguments.iter().map(String::as_str));
        self.run(&all)
    }

    /// The documentation of the workspace, with warnings as errors.
    ///
    /// Selecting the examples brings in the development dependencies, and with them and the GPUs' the features that clippy
    /// compiled: without it, Cargo checks Burn a second time.
    pub fn doc(&self) -> Result<()> {
        let mut all = vec!["doc", "--no-deps", "--workspace"];
        all.extend(["--lib", "--bins", "--examples"]);
        all.extend(GPUS);
        self.run_with(&all, &[("RUSTDOCFLAGS", "-D warnings")])
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        let command = announce(arguments);
        let status = self
            .command(arguments)
            .envs(environment.iter().copied())
            .status()
            .with_context(|| format!("cannot start `{command}`"))?;
        ensure!(status.success(), "`{command}` failed: {status}");
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(&self.root);
        command
    }
}

/// Runs one step and prints how long it took.
pub fn timed(name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    eprintln!("== {name}");
    step().with_context(|| format!("step `{name}`"))?;
    eprintln!("== took {:.0} s: {name}", start.elapsed().as_secs_f64());
    Ok(())
}

/// Prints a command before it runs, and returns it for messages.
fn announce(arguments: &[&str]) -> String {
    let command = format!("cargo {}", arguments.join(" "));
    eprintln!("$ {command}");
    command
}
