//! Writes docs/frontier.md: published experiments replayed by the planner, and plans that beat them. `cargo xtask frontier`.

#[path = "../common/console.rs"]
#[macro_use]
mod console;

mod document;

use std::process::ExitCode;

use burn_frontier::observe::progress::Screen;

fn main() -> ExitCode {
    console::listen(&Screen::default());
    let Some(path) = std::env::args().nth(1) else {
        return console::failed("no file to write; run `cargo xtask frontier`");
    };
    let written = document::document().map_err(|error| error.to_string());
    match written.and_then(|text| std::fs::write(&path, text).map_err(|error| error.to_string())) {
        Ok(()) => {
            say!("written   {path}");
            console::end(ExitCode::SUCCESS)
        }
        Err(error) => console::failed(error),
    }
}
