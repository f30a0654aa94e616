//! Writes and calibrates machine files for the planner: `cargo xtask measure --help`.

#[path = "../common/console.rs"]
#[macro_use]
mod console;

mod bench;
mod steps;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
#[cfg(feature = "flex")]
use burn_frontier::device::memory::HostMemory;
use burn_frontier::models::gpt::{GptConfig, runs};
use burn_frontier::observe::progress::Screen;
use burn_frontier::plan::Machine;
use burn_frontier::plan::fit::Run;
use burn_frontier::plan::fit::{self, Prediction};
use clap::Parser;

/// Large tensors of a step lie where those of the last one lay.
#[cfg(feature = "flex")]
#[global_allocator]
static MEMORY: HostMemory = HostMemory::new();

/// Writes and calibrates machine files for the planner.
#[derive(Debug, Parser)]
#[command(name = "measure", bin_name = "cargo xtask measure")]
struct Options {
    /// Calibrate --machine with the measured runs of this CSV file
    #[arg(long, value_name = "RUNS.csv")]
    fit: Option<PathBuf>,
    /// Write the prediction beside every measured run of this CSV file
    #[arg(long, value_name = "RUNS.csv")]
    predict: Option<PathBuf>,
    /// The machine to start from or to predict with: a name or a file
    #[arg(long, default_value = "a100", value_name = "NAME")]
    machine: String,
    /// After measuring this machine, run 12 layouts and compare them with their predictions
    #[arg(long, conflicts_with_all = ["fit", "predict"])]
    check: bool,
    /// Where to write the machine file (or, with --predict alone, the predictions as CSV)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    console::listen(&Screen::default());
    match run(&Options::parse()) {
        Ok(()) => console::end(ExitCode::SUCCESS),
        Err(error) => console::failed(error),
    }
}

fn run(options: &Options) -> Result<()> {
    if options.fit.is_none() && options.predict.is_none() {
        return this_machine(options);
    }
    let mut machine = Machine::load(&options.machine)?;
    if let Some(path) = &options.fit {
        let fitted = fit::fit(&machine, &runs::read(path)?)?;
        let known = fit::predict(&fitted.machine, &runs::read(path)?)?;
        summary("runs it was calibrated with", &known);
        summary("runs held back", &fitted.held_back);
        machine = fitted.machine;
        match &options.out {
            Some(out) => write(out, &machine.to_toml()?)?,
            None => say!("\n{}", machine.to_toml()?),
        }
    }
    if let Some(path) = &options.predict {
        let runs = runs::read(path)?;
        let predictions = fit::predict(&machine, &runs)?;
        let table = table(&runs, &predictions);
        match &options.out {
            Some(out) if options.fit.is_none() => write(out, &table)?,
            _ => say!("{}", table.trim_end()),
        }
        summary("runs", &predictions);
    }
    Ok(())
}

/// Small models and layouts whose steps calibrate a file of this machine: layers, hidden, sequence; tp, pp, dp; global
/// and micro-batch.
const CALIBRATION: [([usize; 3], [usize; 3], [u64; 2]); 12] = [
    ([4, 128, 128], [1, 1, 1], [8, 2]),
    ([4, 128, 128], [1, 1, 1], [16, 8]),
    ([4, 256, 128], [1, 1, 1], [8, 4]),
    ([2, 512, 128], [1, 1, 1], [8, 4]),
    ([4, 128, 256], [2, 1, 1], [8, 2]),
    ([4, 256, 128], [2, 1, 1], [8, 4]),
    ([4, 256, 128], [1, 2, 1], [8, 4]),
    ([4, 128, 128], [1, 2, 1], [16, 8]),
    ([4, 256, 128], [1, 1, 2], [16, 4]),
    ([2, 512, 128], [1, 1, 2], [8, 4]),
    ([4, 256, 128], [2, 2, 1], [8, 2]),
    ([4, 128, 128], [2, 1, 2], [16, 4]),
];

/// Other models and layouts, to be predicted.
const CHECKED: [([usize; 3], [usize; 3], [u64; 2]); 12] = [
    ([6, 128, 128], [1, 1, 1], [16, 4]),
    ([6, 256, 128], [1, 1, 1], [8, 2]),
    ([3, 384, 128], [1, 1, 1], [8, 4]),
    ([4, 256, 256], [1, 1, 1], [4, 2]),
    ([6, 256, 128], [2, 1, 1], [16, 8]),
    ([4, 128, 128], [2, 1, 1], [16, 8]),
    ([6, 256, 128], [1, 2, 1], [16, 2]),
    ([4, 512, 128], [1, 2, 1], [8, 2]),
    ([6, 256, 128], [1, 1, 2], [8, 2]),
    ([4, 128, 128], [1, 2, 2], [16, 4]),
    ([4, 256, 128], [2, 1, 2], [8, 4]),
    ([6, 256, 128], [2, 2, 1], [16, 4]),
];

fn steps_of(jobs: &[([usize; 3], [usize; 3], [u64; 2])]) -> Result<Vec<Run<GptConfig>>> {
    jobs.iter()
        .map(|&(model, layout, batch)| Ok(steps::run(steps::job(model, layout, batch)?)?))
        .collect()
}

/// Measures this machine and writes its file.
fn this_machine(options: &Options) -> Result<()> {
    let start = bench::measure(&Machine::load("laptop")?)?;
    let runs = steps_of(&CALIBRATION)?;
    let fitted = fit::fit(&start, &runs)?;
    summary(
        "steps that calibrated it",
        &fit::predict(&fitted.machine, &runs)?,
    );
    summary("steps held back", &fitted.held_back);
    match &options.out {
        Some(out) => write(out, &fitted.machine.to_toml()?)?,
        None => say!("{}", fitted.machine.to_toml()?),
    }
    if options.check {
        let runs = steps_of(&CHECKED)?;
        let predictions = fit::predict(&fitted.machine, &runs)?;
        say!("{}", table(&runs, &predictions).trim_end());
        summary("layouts that it had not seen", &predictions);
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn table(runs: &[Run<GptConfig>], predictions: &[Prediction]) -> String {
    let mut text = String::from(
        "global batch,micro batch,hidden,layers,tp,dp,pp,measured ms,predicted ms,error %\n",
    );
    for (Run { job, .. }, p) in runs.iter().zip(predictions) {
        let (m, l) = (&job.model, job.layout);
        text += &format!(
            "{},{},{},{},{},{},{},{:.2},{:.2},{:+.1}\n",
            job.global_batch,
            job.micro_batch,
            m.hidden,
            m.layers,
            l.tp,
            l.dp,
            l.pp,
            1e3 * p.measured,
            1e3 * p.predicted,
            100.0 * p.error()
        );
    }
    text
}

fn summary(what: &str, predictions: &[Prediction]) {
    let (mean, worst) = fit::errors(predictions);
    console::note(format_args!(
        "{what}: {}; mean error {:.2} %, worst {:.2} %",
        predictions.len(),
        100.0 * mean,
        100.0 * worst
    ));
}
