//! Compiles every kernel of the catalog for its GPU, checks it, and compares its figures with `kernels/isa.md`:
//! `cargo xtask hip [--update] [FILTER]`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use frontier_kernels::catalog;
use frontier_kernels::error::{Error, Result};
use frontier_kernels::hip::compile;
use frontier_kernels::hip::emit::Source;
use frontier_kernels::hip::table::{Changes, Checked, Table, check};
use frontier_kernels::matrix::instruction::Target;

fn main() -> ExitCode {
    let (mut update, mut filter) = (false, String::new());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--update" => update = true,
            _ => filter = argument,
        }
    }
    match run(update, &filter) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(update: bool, filter: &str) -> Result<()> {
    let mut sources = catalog::sources(&[Target::Gfx90a, Target::Gfx942, Target::Gfx1100])?;
    sources.retain(|source| source.name.contains(filter));
    let checked = check_all(&sources)?;
    let faults: Vec<_> = checked
        .iter()
        .flat_map(|kernel| kernel.faults.clone())
        .collect();
    let rows = checked.into_iter().map(|kernel| kernel.row).collect();
    let mut now = Table {
        compiler: compile::compiler()?,
        rows: vec![],
    };
    now.update(rows);
    print!("{now}");
    if !faults.is_empty() {
        return Err(Error::Tool(format!(
            "kernels that must not be:\n{}",
            faults.join("\n")
        )));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("isa.md");
    let committed = fs::read_to_string(&path).map(|text| Table::parse(&text));
    if update {
        return write(&path, committed.unwrap_or_default(), now, filter.is_empty());
    }
    let committed = committed.map_err(|error| {
        Error::Tool(format!(
            "no {} ({error}); write it: cargo xtask hip --update",
            path.display()
        ))
    })?;
    compare(&committed, &now, filter)
}

/// Checks the kernels on all cores, in their order.
fn check_all(sources: &[Source]) -> Result<Vec<Checked>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(check(source));
        }
        done
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Writes the table: of all kernels, or with the filtered ones renewed.
fn write(path: &Path, committed: Table, now: Table, all: bool) -> Result<()> {
    let mut table = match all {
        true => Table::default(),
        false => committed,
    };
    table.compiler = now.compiler;
    table.update(now.rows);
    fs::write(path, table.to_string())
        .map_err(|error| Error::Tool(format!("cannot write {}: {error}", path.display())))?;
    eprintln!("hip: wrote {}", path.display());
    Ok(())
}

fn compare(committed: &Table, now: &Table, filter: &str) -> Result<()> {
    if committed.compiler != now.compiler {
        eprintln!(
            "hip: {} kernels have no fault; their figures are not compared, because isa.md is from {} and this is {}",
            now.rows.len(),
            committed.compiler,
            now.compiler
        );
        return Ok(());
    }
    let mut changes = Changes::default();
    for row in &now.rows {
        match committed.row(&row.kernel) {
            Some(old) => changes.extend(row.changes(old)),
            None => changes.worse.push(format!("{}: not in isa.md", row.kernel)),
        }
    }
    let gone = committed
        .rows
        .iter()
        .filter(|row| now.row(&row.kernel).is_none());
    let gone = gone.filter(|row| row.kernel.contains(filter));
    changes
        .worse
        .extend(gone.map(|row| format!("{}: in isa.md, but not in the catalog", row.kernel)));
    if !changes.worse.is_empty() {
        return Err(Error::Tool(format!(
            "worse than kernels/isa.md (if that is intended: cargo xtask hip --update):\n{}",
            changes.worse.join("\n")
        )));
    }
    if !changes.better.is_empty() {
        let better = changes.better.join("\n");
        eprintln!("better than kernels/isa.md; keep it by `cargo xtask hip --update`:\n{better}");
    }
    eprintln!(
        "hip: {} kernels, none worse than kernels/isa.md",
        now.rows.len()
    );
    Ok(())
}
