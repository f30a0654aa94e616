//! Every operation of burn-frontier by itself, on any device, beside what that device reached in the same run.
//!
//! `cargo bench --bench kernels -- --help` says what is counted and how to bench one kernel at one shape.

#[path = "../examples/common/console.rs"]
#[macro_use]
mod console;

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/case.rs"]
mod case;
#[path = "kernels/catalog.rs"]
mod catalog;
#[path = "kernels/ceiling.rs"]
mod ceiling;
#[path = "kernels/clock.rs"]
mod clock;
#[path = "kernels/events.rs"]
mod events;
#[path = "kernels/layers.rs"]
mod layers;
#[path = "kernels/options.rs"]
mod options;
#[path = "kernels/report.rs"]
mod report;
#[path = "kernels/rows.rs"]
mod rows;
#[path = "kernels/windows.rs"]
mod windows;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
#[cfg(feature = "flex")]
use burn_frontier::device::memory::HostMemory;
use burn_frontier::device::{self, Choice};
use burn_frontier::ops::{self, tuning};
use burn_frontier::run_folder;

use case::{Case, Place};
use catalog::{Job, Size};
use ceiling::Ceiling;
use clock::Clock;
use events::Events;
use options::Options;
use report::{Peer, Row};

/// The root of the workspace: Cargo starts a benchmark in its package's folder.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Large tensors of a case lie where those of the last one lay.
#[cfg(feature = "flex")]
#[global_allocator]
static MEMORY: HostMemory = HostMemory::new();

fn main() -> ExitCode {
    match run(&Options::read()) {
        Ok(()) => console::end(ExitCode::SUCCESS),
        Err(error) => console::failed(error),
    }
}

fn run(options: &Options) -> Result<()> {
    std::env::set_current_dir(ROOT).context("cannot enter the workspace's folder")?;
    let events = Events::watch();
    let choice = device::choose(options.device.as_deref())?;
    let dtype = options.dtype.dtype();
    choice.check_dtype(dtype)?;
    let size = size(options, &choice);
    let jobs = catalog::select(options, size)?;
    say!("device    {}", choice.reason);
    if options.list {
        say!("{}", catalog::list(&jobs).trim_end());
        return Ok(());
    }
    let peer = match &options.peer {
        Some(path) => Some(Peer::read(path, options.dtype)?),
        None => None,
    };
    if let Some(folder) = &options.autotune {
        tuning::enable(&choice, folder)?;
    }
    if options.require_kernels {
        ops::kernels::require(&choice).context("--require-kernels")?;
    }
    let place = Place {
        device: choice.of_rank(0),
        dtype,
    };
    let clock = Clock::new(place.device.clone(), options.seconds(size));
    let ceiling = Ceiling::measure(&place, &clock, size)?;
    say!("ceilings  {ceiling}");
    let mut rows = Vec::new();
    for job in &jobs {
        let label = job.label();
        console::note(format_args!("{label} …"));
        let row = measure(job, &place, &clock, &events).with_context(|| label.clone())?;
        ops::kernels::check().with_context(|| label.clone())?;
        console::note(format_args!("    {}", row.summary(&ceiling)));
        rows.push(row);
    }
    say!("\n{}", report::table(&rows, &ceiling, peer.as_ref()));
    if let Some(summary) = tuning::summary() {
        say!("autotune  {summary}");
    }
    let title = format!("{}, {}", choice.name(), options.dtype);
    write(&options.out, &title, &rows, &ceiling, options)
}

fn size(options: &Options, choice: &Choice) -> Size {
    match (options.quick, choice.is_processor()) {
        (true, _) => Size::Tiny,
        (false, true) => Size::Small,
        (false, false) => Size::Large,
    }
}

fn measure(job: &Job, place: &Place, clock: &Clock, events: &Events) -> Result<Row> {
    let mut case: Case = job.case(place)?;
    events.forget();
    let timing = clock.time(case.work.bytes, &mut case.prepare)?;
    Ok(Row {
        kernel: job.name(),
        shape: job.shape_text(),
        work: case.work,
        timing,
        by: events.seen(),
    })
}

fn write(
    folder: &Path,
    title: &str,
    rows: &[Row],
    ceiling: &Ceiling,
    options: &Options,
) -> Result<()> {
    if !folder.exists() {
        run_folder::mark(folder)?; // What is written there is not read by `--data .`.
    }
    let [svg, csv] = ["kernels.svg", "kernels.csv"].map(|name| folder.join(name));
    report::plot(&svg, title, rows, ceiling)?;
    std::fs::write(&csv, report::csv(rows, ceiling, options.dtype))
        .with_context(|| format!("cannot write {}", csv.display()))?;
    say!("plot      {}", svg.display());
    say!("figures   {}", csv.display());
    Ok(())
}
