//! What a run does when it has trained: a sample, plots, an export.

use std::path::Path;

use anyhow::{Context, Result};
use burn_frontier::Layout;
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::comm::groups::Groups;
use burn_frontier::models::gpt::generate::{Sampling, generate};
use burn_frontier::models::gpt::names;
use burn_frontier::models::gpt::sharding::GptPart;
use burn_frontier::observe::trace::Span;

use crate::options::Options;
use crate::{Job, RankResult, report};

/// Tokens of the sample at the end.
const GENERATED: usize = 200;

/// The model's continuation of a few words.
pub fn sample(job: &Job, parts: &[GptPart], groups: &Groups) -> burn_frontier::Result<Vec<u32>> {
    let prompt = job.tokenizer.encode("pub fn ")?;
    let sampling = Sampling {
        temperature: 0.8,
        top_k: 40,
        seed: job.settings.seed,
    };
    generate(parts, groups, &prompt, GENERATED, job.sequence, &sampling)
}

/// Plots, the sample, an export if wanted, and what to try next.
pub fn finish(job: &Job, options: &Options, ranks: Vec<RankResult>) -> Result<()> {
    let layout: Layout = job.settings.layout;
    let finished = ranks.first().map_or(0, |rank| rank.finished);
    let text = ranks
        .first()
        .map(|rank| job.tokenizer.decode(&rank.text))
        .transpose()?;
    let spans: Vec<Span> = ranks.into_iter().flat_map(|rank| rank.spans).collect();
    report::draw(&job.settings, &job.corpus, &layout, &spans)?;
    if let Some(folder) = &options.export {
        export(job, folder)?;
    }
    report::conclude(
        &job.settings,
        &job.corpus,
        finished,
        text.as_deref().unwrap_or_default(),
    )
}

fn export(job: &Job, folder: &Path) -> Result<()> {
    let checkpoints = job.settings.out.join("checkpoints");
    let checkpoint =
        Checkpoint::newest(&checkpoints)?.context("there is no checkpoint to export")?;
    names::export(&checkpoint, &job.model, folder)?;
    println!("exported to {}", folder.display());
    Ok(())
}
