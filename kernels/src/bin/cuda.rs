//! Writes every kernel of the catalog as CUDA C++ into a folder, for NVRTC to compile:
//! `cargo run -p frontier-kernels --bin cuda -- FOLDER [FILTER]`, then `kernels/nvrtc.py FOLDER sm_90`. With `--candidates` the
//! plans that tuning times against those of the catalog.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use frontier_kernels::catalog;
use frontier_kernels::error::{Error, Result};
use frontier_kernels::matrix::instruction::Target;

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args().skip(1).collect();
    let candidates = arguments.iter().any(|argument| argument == "--candidates");
    arguments.retain(|argument| argument != "--candidates");
    let (folder, filter) = match arguments.as_slice() {
        [folder] => (folder, ""),
        [folder, filter] => (folder, filter.as_str()),
        _ => {
            eprintln!("usage: cuda [--candidates] FOLDER [FILTER]");
            return ExitCode::FAILURE;
        }
    };
    match write(Path::new(folder), filter, candidates) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path, filter: &str, candidates: bool) -> Result<()> {
    let cannot = |error| Error::Tool(format!("cannot write to {}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(cannot)?;
    let wanted = |name: &str| name.contains(filter);
    let mut sources = match candidates {
        true => catalog::candidates(Target::Cuda, &wanted)?,
        false => catalog::sources(&[Target::Cuda])?,
    };
    sources.retain(|source| wanted(&source.name));
    for source in &sources {
        let text = format!(
            "// {} bytes of dynamic shared memory\n{}",
            source.shared_memory, source.text
        );
        fs::write(folder.join(format!("{}.cu", source.name)), text).map_err(cannot)?;
    }
    println!("{} kernels in {}", sources.len(), folder.display());
    Ok(())
}
