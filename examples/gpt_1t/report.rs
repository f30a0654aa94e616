//! What the run shows: before, during and after.

use std::sync::Arc;

use anyhow::Result;
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::comm::Communicator;
use burn_frontier::data::Tokenizer;
use burn_frontier::device::Choice;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::observe::flops::Throughput;
use burn_frontier::observe::metrics::{MetricsLog, StepRecord, read_metrics};
use burn_frontier::observe::plot::{write_loss_plot, write_pipeline_plot};
use burn_frontier::observe::progress::Progress;
use burn_frontier::observe::tensorboard::EventWriter;
use burn_frontier::observe::trace::{Span, write_chrome_trace};
use burn_frontier::ops::tuning;
use burn_frontier::optim::scaler::LossScaler;

use crate::corpus::Corpus;
use crate::model::Chosen;
use crate::settings::Settings;
use crate::{Job, RankResult};

/// Says what is about to happen; `resume` is what the run goes on from, and what changes with it.
pub fn introduce(
    settings: &Settings,
    chosen: &Chosen,
    tokenizer: &Tokenizer,
    corpus: &Corpus,
    device: &Choice,
    memory: &str,
    resume: Option<(&Checkpoint, &[String])>,
) {
    say!("device    {}", device.reason);
    if let Some(how) = device.half_by(settings.precision.dtype()) {
        say!("precision {how}");
    }
    say!("model     {}", described(chosen, tokenizer));
    say!(
        "layout    {} = {} ranks as threads, schedule {}, ZeRO {}, sequence parallel {}",
        settings.layout,
        settings.layout.world(),
        settings.kind,
        settings.zero,
        if settings.sequence_parallel {
            "on"
        } else {
            "off"
        }
    );
    say!(
        "batch     {} samples a step in micro-batches of {}, {} tokens a step",
        settings.global_batch,
        settings.micro_batch,
        settings.global_batch * chosen.sequence as u64
    );
    say!("memory    {memory}");
    say!("text      {}", corpus.summary);
    say!(
        "to beat   {:.3}, the validation loss of a unigram model",
        corpus.unigram
    );
    let Some((checkpoint, changes)) = resume else {
        say!("output    {}", settings.out.display());
        return;
    };
    let done = checkpoint.step();
    say!("resume    step {done} from {}", checkpoint.path().display());
    for change in changes {
        say!("changed   {change}");
    }
    if done >= settings.steps {
        say!("done      all {done} steps are trained; a larger --steps trains on");
    }
}

/// A model in a line.
fn described(chosen: &Chosen, tokenizer: &Tokenizer) -> String {
    let Chosen { model, sequence } = chosen;
    let with = |remark: bool, words: String| if remark { words } else { String::new() };
    let ids = tokenizer.vocabulary();
    format!(
        "{} layers, hidden {}, {} heads, vocabulary {}{}, sequence {sequence}{}{}: {:.2} million parameters",
        model.layers,
        model.hidden,
        model.heads,
        model.vocabulary,
        with(ids < model.vocabulary, format!(" ({ids} in the tokenizer)")),
        with(
            *sequence < model.sequence,
            format!(" (of {} positions)", model.sequence)
        ),
        with(model.dropout > 0.0, format!(", dropout {}", model.dropout)),
        model.parameters() as f64 / 1e6
    )
}

/// One step's numbers.
pub struct Measured {
    pub step: u64,
    pub loss: f64,
    pub norm: f64,
    pub rate: f64,
    pub seconds: f64,
    pub validation: Option<f64>,
    pub scaler: LossScaler,
}

/// Shows and records steps, on rank 0.
pub struct Reporter {
    outputs: Option<(Progress, MetricsLog, EventWriter)>,
    model: GptConfig,
    settings: Settings,
    device: Choice,
    /// Most memory held so far.
    peak: Option<u64>,
    communicated: u64,
}

impl Reporter {
    pub fn new(job: &Job, world: &Arc<dyn Communicator>, done: u64) -> burn_frontier::Result<Self> {
        let (settings, corpus) = (&job.settings, &job.corpus);
        let outputs = if world.rank() == 0 {
            let (metrics, events) = (
                settings.out.join("metrics.jsonl"),
                settings.out.join("tensorboard"),
            );
            let log = if done > 0 {
                MetricsLog::resume(metrics, done)?
            } else {
                MetricsLog::create(metrics)?
            };
            let mut board = EventWriter::create(events, (done > 0).then_some(done))?;
            board.scalars(done, &[("loss/unigram", corpus.unigram)])?;
            Some((
                Progress::new(settings.steps, done, &job.screen)?,
                log,
                board,
            ))
        } else {
            None
        };
        Ok(Self {
            outputs,
            model: job.sampled(),
            settings: settings.clone(),
            device: job.device.clone(),
            peak: None,
            communicated: 0,
        })
    }

    pub fn step(
        &mut self,
        measured: Measured,
        world: &Arc<dyn Communicator>,
    ) -> burn_frontier::Result<()> {
        let Some((progress, log, board)) = &mut self.outputs else {
            return Ok(());
        };
        let total: u64 = world.traffic().iter().map(|traffic| traffic.bytes).sum();
        let tokens = self.settings.global_batch * self.model.sequence as u64;
        let ranks = self.settings.layout.world();
        let shape = self.model.shape();
        self.peak = self.peak.max(self.device.held_bytes());
        // Without a known peak, utilisation stays empty.
        let speed = Throughput::measure(
            shape.flops(self.settings.recompute),
            tokens,
            measured.seconds,
            ranks,
            self.settings.peak,
        )?;
        let record = StepRecord {
            step: measured.step,
            samples: measured.step * self.settings.global_batch,
            tokens: Some(measured.step * tokens),
            loss: measured.loss,
            gradient_norm: measured.norm,
            learning_rate: measured.rate,
            skipped: measured.scaler.skipped,
            seconds: measured.seconds,
            samples_per_second: self.settings.global_batch as f64 / measured.seconds,
            tokens_per_second: Some(speed.tokens_per_second),
            tokens_per_second_per_rank: Some(speed.tokens_per_second_per_rank),
            mfu: speed.mfu,
            hfu: speed.hfu,
            peak_memory_bytes: self.peak,
            communicated_bytes: total - self.communicated,
            loss_scale: (measured.scaler.scale > 1.0).then_some(measured.scaler.scale),
            validation_loss: measured.validation,
        };
        self.communicated = total;
        log.append(&record)?;
        board.record(&record)?;
        progress.update(&record);
        Ok(())
    }

    pub fn finish(self) {
        if let Some((progress, ..)) = self.outputs {
            progress.finish();
        }
    }
}

/// Draws the loss of every step.
pub fn draw_loss(settings: &Settings, corpus: &Corpus) -> Result<()> {
    let out = &settings.out;
    let records = read_metrics(out.join("metrics.jsonl"))?;
    let title = format!("Training loss, {}", settings.layout);
    write_loss_plot(out.join("loss.svg"), &title, &records, Some(corpus.unigram))?;
    Ok(())
}

/// Draws the last step's pipeline, and writes the trace of all ranks. Without a step, those of an earlier one stay.
pub fn draw_step(settings: &Settings, ranks: &[RankResult]) -> Result<()> {
    let (out, layout) = (&settings.out, &settings.layout);
    let spans: Vec<Span> = ranks.iter().flat_map(|rank| &rank.spans).copied().collect();
    if spans.is_empty() {
        return Ok(());
    }
    write_chrome_trace(out.join("trace.json"), layout, &spans)?;
    let first_pipeline: Vec<Span> = spans
        .into_iter()
        .filter(|span| {
            let at = layout.coordinate(span.rank);
            at.tp == 0 && at.dp == 0
        })
        .collect();
    let title = format!("Last step, {}, {layout}", settings.kind);
    write_pipeline_plot(out.join("pipeline.svg"), &title, &first_pipeline)?;
    Ok(())
}

/// Says what came of it.
pub fn conclude(settings: &Settings, corpus: &Corpus) -> Result<()> {
    let records = read_metrics(settings.out.join("metrics.jsonl"))?;
    if let Some((record, loss)) = records
        .iter()
        .rev()
        .find_map(|r| r.validation_loss.map(|loss| (r, loss)))
    {
        say!(
            "validation loss {loss:.3} after step {} (perplexity {:.2}); a unigram model has {:.3} ({:.1})",
            record.step,
            loss.exp(),
            corpus.unigram,
            corpus.unigram.exp()
        );
    }
    let written = |name: &str| {
        let path = settings.out.join(name);
        path.exists().then(|| path.display().to_string())
    };
    for (what, names, hint) in [
        ("plots", &["loss.svg", "pipeline.svg"][..], ""),
        ("trace", &["trace.json"], " (open in ui.perfetto.dev)"),
        ("metrics", &["metrics.jsonl", "tensorboard"], ""),
        ("checkpoints", &["checkpoints"], ""),
    ] {
        let paths: Vec<String> = names.iter().filter_map(|name| written(name)).collect();
        if !paths.is_empty() {
            say!("{what:<12} {}{hint}", paths.join(", "));
        }
    }
    if let Some(summary) = tuning::summary() {
        say!("autotune     {summary}");
    }
    Ok(())
}
