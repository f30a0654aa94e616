//! What a run does when it has trained: a sample, plots, an export. All of it comes from the last checkpoint and the
//! log, each part by itself: what fails is said, and the rest still happens.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local;
use burn_frontier::data::Tokenizer;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::generate::{Sampling, generate};
use burn_frontier::models::gpt::names;
use burn_frontier::parameter::load_parameters;

use crate::corpus::Corpus;
use crate::options::Options;
use crate::{Job, RankResult, command, report, signals};

/// Tokens of the sample at the end.
const GENERATED: usize = 200;
/// Tokens of the validation text that the sample continues where the tokenizer cannot encode [`PROMPT`].
const BORROWED: usize = 8;
/// What the sample continues.
const PROMPT: &str = "pub fn ";
/// The exit code of a run that has trained, but lacks a part of what comes behind.
const INCOMPLETE: u8 = 3;

/// What has become of the end of a run.
#[derive(Default)]
struct Parts {
    missing: bool,
}

impl Parts {
    /// Does one part; its failure is said.
    fn part<T>(&mut self, what: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        match work() {
            Ok(done) => Some(done),
            Err(error) => {
                self.missing = true;
                tracing::warn!("{what} is missing: {error:#}");
                None
            }
        }
    }
}

/// Plots, the sample, an export if wanted, and what to try next. A run that a signal ended draws its plots only.
pub fn finish(job: &Job, options: &Options, ranks: &[RankResult]) -> ExitCode {
    let (settings, mut parts) = (&job.settings, Parts::default());
    let stopped = job.signals.stop();
    let finished = match ranks.first() {
        Some(rank) => rank.finished,
        None => job.done(),
    };
    parts.part("loss.svg", || report::draw_loss(settings, &job.corpus));
    parts.part("the plot of the last step", || {
        report::draw_step(settings, ranks)
    });
    let export_to = options.export.as_deref().map(Path::display);
    let export_to = export_to.map(|path| path.to_string());
    let mut to_export: Vec<&str> = export_to.iter().flat_map(|to| ["--export", to]).collect();
    if let Some(signal) = stopped {
        let name = signals::name(signal);
        say!("\nstopped by {name} after step {finished}; go on with");
        say!("  {}", command::resume(settings, &to_export));
        return ExitCode::from(u8::try_from(signals::exit_code(signal)).unwrap_or(u8::MAX));
    }
    if let Some(text) = parts.part("the sample", || sample(job)) {
        say!("\nthe model writes:\n{}\n", text.trim_end());
    }
    if let Some(folder) = &options.export {
        let done = parts.part("the export", || export(job, folder));
        if done.is_some() {
            to_export.clear(); // A second export would find the first in its way.
        }
    }
    parts.part("the conclusion", || report::conclude(settings, &job.corpus));
    if parts.missing {
        say!(
            "\ntrained and saved, but something is missing (see the warnings); once mended, complete the run with"
        );
        say!("  {}", command::resume(settings, &to_export));
        return ExitCode::from(INCOMPLETE);
    }
    say!("\nto try next:");
    for (line, what) in command::suggestions(options, settings, &job.sampled(), &job.device) {
        say!("  {line}  # {what}");
    }
    ExitCode::SUCCESS
}

/// The tokens that the sample continues: of a few words, or where the tokenizer has none for them, of the validation text.
pub fn prompt(tokenizer: &Tokenizer, corpus: &Corpus, model: &GptConfig) -> Result<Vec<u32>> {
    let known =
        |ids: &Vec<u32>| !ids.is_empty() && ids.iter().all(|&id| (id as usize) < model.vocabulary);
    if let Some(ids) = tokenizer.encode(PROMPT).ok().filter(known) {
        return Ok(ids);
    }
    let mut ids = corpus.validation.sample(0)?;
    ids.truncate(BORROWED);
    say!(
        "prompt    the tokenizer has no tokens for `{PROMPT}`: the sample at the end continues {} tokens of the validation text",
        ids.len()
    );
    Ok(ids)
}

/// The trained model's continuation of the prompt.
fn sample(job: &Job) -> Result<String> {
    let checkpoint = newest(job)?;
    let ids = job.tokenizer.ids();
    let sampling = Sampling {
        temperature: 0.8,
        top_k: 40,
        seed: job.settings.seed,
        ids: &ids,
    };
    let layout = job.settings.layout;
    let texts = local::run(layout.world(), &job.local, |world| {
        let groups = Groups::new(layout, world.clone())?;
        let context = job.parameters(&groups, world.rank());
        let mut pipeline = job.model.init(job.settings.kind, &groups, &context)?;
        load_parameters(&mut pipeline.chunks, &checkpoint, &groups.tp)?;
        generate(
            &pipeline.chunks,
            &groups,
            &job.prompt,
            GENERATED,
            job.sequence,
            &sampling,
        )
    })?;
    Ok(job.tokenizer.decode(&texts[0])?)
}

fn export(job: &Job, folder: &Path) -> Result<()> {
    names::export(&newest(job)?, &job.model, folder)?;
    say!("exported to {}", folder.display());
    Ok(())
}

fn newest(job: &Job) -> Result<Checkpoint> {
    Checkpoint::newest(&job.settings.checkpoints())?.context("there is no checkpoint")
}
