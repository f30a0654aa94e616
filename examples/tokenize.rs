//! Tokenizes a corpus into Megatron's PREFIX.bin and PREFIX.idx, for `gpt_1t --data PREFIX`.

#[path = "common/console.rs"]
#[macro_use]
mod console;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use burn_frontier::data::{Tokenizer, text::Filter, tokenize_corpus};
use burn_frontier::observe::progress::Screen;
use clap::Parser;

/// Tokenizes text files, folders and JSONL files into PREFIX.bin and PREFIX.idx (Megatron-LM's indexed dataset).
#[derive(Debug, Parser)]
#[command(name = "tokenize", version)]
struct Options {
    /// Files and folders; folders are searched for text and JSONL (one object a line, whatever the file is called)
    #[arg(required = true)]
    input: Vec<PathBuf>,
    /// Where to write: PREFIX.bin and PREFIX.idx
    #[arg(long, value_name = "PREFIX")]
    output: PathBuf,
    /// A Hugging Face tokenizer.json [default: bytes]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Field of a JSONL line that holds the text
    #[arg(long, default_value = "text")]
    key: String,
}

fn main() -> ExitCode {
    console::listen(&Screen::default());
    match run(&Options::parse()) {
        Ok(()) => console::end(ExitCode::SUCCESS),
        Err(error) => console::failed(error),
    }
}

fn run(options: &Options) -> Result<()> {
    if let Some(suffix @ ("bin" | "idx")) = options.output.extension().and_then(|e| e.to_str()) {
        bail!(
            "--output {} would write {0}.bin; name the prefix, without .{suffix}",
            options.output.display()
        );
    }
    let tokenizer = match &options.tokenizer {
        Some(path) => Tokenizer::from_file(path)?,
        None => Tokenizer::bytes(),
    };
    if let Some(folder) = options.output.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let filter = Filter {
        key: options.key.clone(),
        ..Filter::default()
    };
    let mut shown = 0;
    let progress = |stats: &burn_frontier::data::tokenize::Stats| {
        if stats.tokens >= shown + 10_000_000 {
            shown = stats.tokens;
            console::note(format_args!(
                "{} documents, {} tokens",
                stats.documents, stats.tokens
            ));
        }
    };
    let stats = tokenize_corpus(
        &options.input,
        &filter,
        &tokenizer,
        &options.output,
        progress,
    )
    .with_context(|| format!("--key {}", options.key))?;
    say!(
        "{} tokens in {} documents from {} files: {}.bin, .idx",
        stats.tokens,
        stats.documents,
        stats.counts.files,
        options.output.display()
    );
    match stats.counts.remarks() {
        remarks if remarks.is_empty() => {}
        remarks => say!("{remarks}"),
    }
    Ok(())
}
