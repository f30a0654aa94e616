//! Writes docs/frontier.md: published experiments replayed by the planner, and plans that beat them. `cargo xtask frontier`.

mod document;

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("error: no file to write; run `cargo xtask frontier`");
        return ExitCode::FAILURE;
    };
    let written = document::document().map_err(|error| error.to_string());
    match written.and_then(|text| std::fs::write(&path, text).map_err(|error| error.to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
