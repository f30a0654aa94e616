//! Everything a maintainer does: `cargo xtask --help`.

mod cargo;
mod smoke;
mod structure;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use cargo::{Cargo, timed};

/// Everything a maintainer of burn-frontier does.
///
/// The gate is `.ci/run`: formatting, clippy, `cargo test`, then `cargo xtask ci`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// What the gate runs after `cargo test`: structure, dependencies, tests of the other members, hip, doc, smoke.
    Ci,
    /// Check the rules of the source: file length, machine paths, pinned dependencies, forgotten targets, links and paths of
    /// documents, and, where cargo-deny is installed, licences and sources of the dependencies.
    Structure,
    /// Format every file.
    Fmt {
        /// Report differences instead of removing them.
        #[arg(long)]
        check: bool,
    },
    /// Run clippy on every target of the workspace with the features of all GPUs, with warnings as errors.
    Clippy,
    /// Run the tests of every workspace member, slow ones excepted.
    Test,
    /// Run the slow tests: those marked `#[ignore = "slow: cargo xtask slow"]`.
    Slow,
    /// Build the documentation of the workspace and its examples, with warnings as errors.
    Doc,
    /// Train on a GPU, and run the kernels' tests there.
    ///
    /// Without an argument, on what the graphics driver offers: Mesa's (the package mesa-vulkan-drivers) computes on the CPU.
    Gpu {
        /// Which: wgpu, cuda or rocm, which is also the feature that is compiled [default: the variable GPU, or wgpu]
        #[arg(value_parser = ["wgpu", "cuda", "rocm"])]
        device: Option<String>,
    },
    /// Run the example gpt_1t as a user does: train, resume, and a configuration that cannot run. Run every kernel's benchmark at
    /// a tiny shape.
    Smoke,
    /// Compile every kernel for its GPU, check it, and compare its static figures with kernels/isa.md.
    Hip {
        /// Write the figures to kernels/isa.md.
        #[arg(long)]
        update: bool,
        /// Only kernels whose name contains this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Write a machine file for the planner: of this machine, or calibrated with measured runs. See `cargo xtask measure --help`.
    #[command(disable_help_flag = true)]
    Measure {
        /// Arguments for the program that measures.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Write docs/frontier.md: published experiments replayed by the planner.
    Frontier,
    /// Run a benchmark; what follows `--` is passed on: `cargo xtask bench kernels -- --help`.
    ///
    /// In the dev profile, which is optimised, so that what `cargo test` compiled is not compiled again.
    Bench {
        /// Its name: `kernels`, `training_step`, `ranks` or `convolution`.
        #[arg(default_value = "kernels")]
        name: String,
        /// Arguments for the benchmark.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let root = workspace_root()?;
    let cargo = Cargo::new(&root);
    match task {
        Task::Ci => {
            timed("structure", || structure::check(&root))?;
            timed("dependencies", || cargo.deny())?;
            timed("tests of the other members", || cargo.test_others(&[]))?;
            timed("hip", || cargo.hip(false, ""))?;
            timed("doc", || cargo.doc())?;
            timed("smoke", || smoke::run(&cargo))
        }
        Task::Structure => {
            structure::check(&root)?;
            cargo.deny()
        }
        Task::Fmt { check: false } => cargo.run(&["fmt", "--all"]),
        Task::Fmt { check: true } => cargo.run(&["fmt", "--all", "--check"]),
        Task::Clippy => cargo.clippy(),
        Task::Test => {
            cargo.run(&["test"])?;
            cargo.test_others(&[])
        }
        Task::Slow => {
            cargo.run(&["test", "--tests", "--", "--ignored"])?;
            cargo.test_others(&["--tests", "--", "--ignored"])
        }
        Task::Doc => cargo.doc(),
        Task::Gpu { device } => {
            let named = device.or_else(|| std::env::var("GPU").ok());
            let device = named.as_deref().unwrap_or("wgpu");
            timed("training on a GPU", || cargo.test_gpu(device))
        }
        Task::Smoke => smoke::run(&cargo),
        Task::Hip { update, filter } => cargo.hip(update, &filter),
        Task::Measure { arguments } => cargo.example("measure", &arguments),
        Task::Frontier => cargo.example("frontier", &["docs/frontier.md".into()]),
        Task::Bench { name, arguments } => {
            let mut all = vec!["bench", "--profile", "dev", "--bench", &name, "--"];
            all.extend(arguments.iter().map(String::as_str));
            cargo.run(&all)
        }
    }
}

/// The workspace's folder: the parent of this package's, which Cargo names when it runs us.
fn workspace_root() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set; run this program as `cargo xtask`")?;
    let root = PathBuf::from(package).join("..");
    root.canonicalize()
        .with_context(|| format!("cannot find the workspace at {}", root.display()))
}
