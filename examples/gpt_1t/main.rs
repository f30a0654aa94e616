//! Trains a GPT from text to sample, in any layout. `cargo run --example gpt_1t -- --help` lists what can be changed.

#[path = "../common/console.rs"]
#[macro_use]
mod console;

#[cfg(test)]
mod absurd;
mod command;
mod corpus;
mod default_corpus;
mod finish;
#[path = "../common/flags.rs"]
mod flags;
mod folder;
mod memory;
mod model;
mod options;
mod plan;
mod report;
mod saved;
mod settings;
mod shard;
mod signals;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use burn_frontier::checkpoint::{self, Checkpoint, TensorSource};
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, FlightRecorder, LocalOptions};
use burn_frontier::comm::{Buffer, Communicator, Reduction};
use burn_frontier::data::{Sampler, Tokenizer};
use burn_frontier::device::{self, Choice};
use burn_frontier::models::gpt::sharding::GptPart;
use burn_frontier::models::gpt::{GptConfig, names};
use burn_frontier::observe::progress::Screen;
use burn_frontier::observe::trace::{Category, Span, SpanRecorder};
use burn_frontier::ops::{kernels, tuning};
use burn_frontier::optim::clip_factor;
use burn_frontier::optim::scaler::LossScaler;
use burn_frontier::parameter::ParameterContext;
use burn_frontier::pipeline::part::{MicroBatch, StepContext, micro_batches};
use burn_frontier::pipeline::run::Pipeline;
use burn_frontier::zero::{ZeroConfig, state::load_parameters};
use burn_frontier::{Error, Precision};

use corpus::Corpus;
use finish::finish;
use options::Options;
use report::{Measured, Reporter};
use saved::{Saved, carry_on, same_run, state};
use settings::Settings;
use signals::Signals;

/// Samples that a validation looks at.
const VALIDATION_SAMPLES: u64 = 32;

/// Everything the ranks share.
struct Job {
    settings: Settings,
    model: GptConfig,
    /// Tokens a sample.
    sequence: usize,
    corpus: Corpus,
    tokenizer: Tokenizer,
    device: Choice,
    resume: Option<Checkpoint>,
    import: Option<names::Imported>,
    prompt: Vec<u32>,
    local: LocalOptions,
    signals: Signals,
    screen: Screen,
    origin: Instant,
}

impl Job {
    /// Steps done before this program began.
    fn done(&self) -> u64 {
        self.resume.as_ref().map_or(0, Checkpoint::step)
    }

    /// The model at the length of its samples.
    fn sampled(&self) -> GptConfig {
        GptConfig {
            sequence: self.sequence,
            ..self.model.clone()
        }
    }

    /// How a rank makes its parameters.
    fn parameters(&self, groups: &Groups, rank: usize) -> ParameterContext {
        ParameterContext {
            dtype: self.settings.precision.dtype(),
            sequence_parallel: self.settings.sequence_parallel,
            ..ParameterContext::new(self.settings.seed, groups, self.device.of_rank(rank))
        }
    }
}

/// What a rank hands back.
struct RankResult {
    spans: Vec<Span>,
    finished: u64,
}

fn main() -> ExitCode {
    let screen = Screen::default();
    console::listen(&screen);
    console::end(run(screen).unwrap_or_else(console::failed))
}

fn run(screen: Screen) -> Result<ExitCode> {
    let mut options = Options::read()?;
    options.check_numbers()?;
    let import = model::import(&options)?;
    if options.plan {
        let tokenizer = options
            .tokenizer
            .is_some()
            .then(|| corpus::tokenizer(&options));
        let vocabulary = tokenizer
            .transpose()?
            .map(|tokenizer| tokenizer.vocabulary());
        let resume = folder::resumed(&options)?;
        let chosen = model::choose(&options, vocabulary, import.as_ref(), resume.as_ref())?;
        plan::plan(&options, chosen.sampled())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut settings = options.settings()?;
    let device = device::choose(options.device.as_deref())?;
    device.check_dtype(settings.precision.dtype())?;
    if let Some(folder) = &options.autotune {
        tuning::enable(&device, folder)?;
    }
    if options.require_kernels {
        kernels::require(&device).context("--require-kernels")?;
    }
    // Until the start, an older run in the folder stays as it is.
    let (mut folder, resume) = folder::claim(&options)?;
    if options.tokenizer.is_none() {
        options.tokenizer = model::tokenizer_of_import(&options);
    }
    let tokenizer = corpus::tokenizer(&options)?;
    let vocabulary = Some(tokenizer.vocabulary());
    let chosen = model::choose(&options, vocabulary, import.as_ref(), resume.as_ref())?;
    let memory = settings.validate(&chosen.sampled(), &device)?;
    if let Some(import) = &import {
        import.check_values().context("--import")?;
    }
    if let Some(folder) = &options.export {
        names::check_export(&chosen.model, folder).context("--export")?;
    }

    let sequence = chosen.sequence;
    let corpus = corpus::load(&options, &tokenizer, &folder, sequence, settings.seed)?;
    let mut changes = Vec::new();
    if let Some(checkpoint) = &resume {
        same_run(checkpoint, &tokenizer, &corpus, &settings)?;
        changes = carry_on(checkpoint, &options, &mut settings)?;
    }
    let prompt = finish::prompt(&tokenizer, &corpus, &chosen.model)?;

    folder::start(&mut folder, &options, &settings)?;
    report::introduce(
        &settings,
        &chosen,
        &tokenizer,
        &corpus,
        &device,
        &memory,
        resume.as_ref().map(|from| (from, changes.as_slice())),
    );

    let recorder = FlightRecorder::default();
    let signals = signals::listen(recorder.clone(), &settings.out)?;
    let local = LocalOptions {
        timeout: settings.timeout,
        recorder,
        ..LocalOptions::default()
    };
    let job = Job {
        settings,
        model: chosen.model,
        sequence,
        corpus,
        tokenizer,
        device,
        resume,
        import,
        prompt,
        local,
        signals,
        screen,
        origin: Instant::now(),
    };
    let mut ranks = Vec::new();
    if job.done() < job.settings.steps {
        let world = job.settings.layout.world();
        ranks = local::run(world, &job.local, |world| train(&job, world))
            .map_err(|error| with_way_on(&job, &error))?;
    }
    job.signals.all_is_saved();
    Ok(finish(&job, &options, &ranks))
}

/// An error that ended the training, and what is left of it.
fn with_way_on(job: &Job, error: &Error) -> anyhow::Error {
    match Checkpoint::newest(&job.settings.checkpoints()) {
        Ok(Some(checkpoint)) => anyhow!(
            "{error}\nstep {} is saved; once this is mended, go on from it with\n  {}",
            checkpoint.step(),
            command::resume(&job.settings, &[])
        ),
        Ok(None) => anyhow!("{error}\nno checkpoint was saved before: the run must start anew"),
        Err(unreadable) => anyhow!("{error}\nnor can a checkpoint be read: {unreadable}"),
    }
}

/// One rank's training, start to end.
fn train(job: &Job, world: Arc<dyn Communicator>) -> burn_frontier::Result<RankResult> {
    let Job {
        settings, model, ..
    } = job;
    let groups = Groups::new(settings.layout, world.clone())?;
    let context = job.parameters(&groups, world.rank());

    // The model: this stage's layers, split over the tensor-parallel ranks.
    let mut pipeline = model.init(settings.kind, &groups, &context)?;
    if let Some(imported) = &job.import {
        load_parameters(&mut pipeline.parts, imported, &groups.tp)?;
    }

    // The optimiser: gradients summed over the replicas, state split over them.
    let mut zero = ZeroConfig::new(settings.zero, settings.overlap);
    zero.adamw.weight_decay = settings.weight_decay;
    let tied = model.tied_parameter(&groups);
    let (mut gradients, mut optimizer) = zero.init(&mut pipeline.parts, tied, &groups)?;
    let mut scaler = if settings.precision == Precision::Fp16 {
        LossScaler::dynamic()
    } else {
        LossScaler::off()
    };
    let mut done = 0;
    if let Some(checkpoint) = &job.resume {
        let saved: Saved = checkpoint.state()?;
        optimizer.restore(
            &mut pipeline.parts,
            saved.optimizer_steps,
            checkpoint as &dyn TensorSource,
        )?;
        (scaler, done) = (saved.scaler, checkpoint.step());
    }

    let cuts = micro_batches(
        settings.global_batch,
        settings.micro_batch,
        groups.at.dp,
        settings.layout.dp,
    )?;
    let mut spans = SpanRecorder::new(job.origin, world.rank(), groups.at.pp, true);
    let mut reporter = Reporter::new(job, &world, done)?;
    let mut last_spans = Vec::new();

    while done < settings.steps {
        let step = done + 1;
        let start = Instant::now();
        spans.take();

        let first_sample = (step - 1) * settings.global_batch;
        let batches = read(&job.corpus.train, first_sample, &cuts)?;
        let pass = StepContext {
            seed: settings.seed,
            step: Some(step),
            recompute: settings.recompute,
        };
        let result =
            pipeline.forward_backward(&batches, &pass, scaler.scale, &mut gradients, &mut spans)?;

        let reduced = gradients.finish()?;
        let norm = optimizer.gradient_norm(&reduced)? / scaler.scale;
        let rate = settings.rate.at(step);
        let scale = scaler.scale;
        let update = Instant::now();
        match scaler.update(norm) {
            Some(true) => {
                let factor = clip_factor(norm, settings.clip) / scale;
                optimizer.step(&mut pipeline.parts, reduced, rate, factor)?;
            }
            Some(false) => {} // An overflow: this step is skipped, the next has a smaller scale.
            None => return Err(diverged(step, "gradient norm", norm)),
        }
        spans.record(Category::Step, None, 0, update);
        done = step;

        // Every rank learns the loss, and whether any was asked to stop.
        let stop = job.signals.stop().is_some();
        let mean = result.loss_sum / result.counted as f64; // This replica's summand of it.
        let (loss, stop) = agree(&world, &groups, mean, stop)?;
        if !loss.is_finite() {
            return Err(diverged(step, "loss", loss));
        }
        last_spans = spans.take();

        let seconds = start.elapsed().as_secs_f64();
        let last = done == settings.steps;
        let validation = (last || done.is_multiple_of(settings.validate_every))
            .then(|| validate(job, &pipeline, &groups))
            .transpose()?;
        let measured = Measured {
            step,
            loss,
            norm,
            rate,
            seconds,
            validation,
            scaler,
        };
        reporter.step(measured, &world)?;

        if stop || last || done.is_multiple_of(settings.save_every) {
            let saved = state(job, done, optimizer.steps, scaler)?;
            let pieces = optimizer.pieces(&mut pipeline.parts);
            let (folder, keep) = (settings.checkpoints(), settings.keep);
            checkpoint::save(&folder, done, &saved, pieces, world.as_ref(), keep)?;
        }
        if stop {
            break;
        }
    }
    reporter.finish();
    Ok(RankResult {
        spans: last_spans,
        finished: done,
    })
}

/// This replica's micro-batches of the step that starts at global sample `first`.
fn read(
    sampler: &Sampler,
    first: u64,
    cuts: &[std::ops::Range<u64>],
) -> burn_frontier::Result<Vec<MicroBatch>> {
    cuts.iter()
        .map(|cut| {
            let samples: burn_frontier::Result<Vec<_>> = cut
                .clone()
                .map(|position| sampler.sample(first + position))
                .collect();
            MicroBatch::new(&samples?, cut.clone().collect())
        })
        .collect()
}

/// The global loss, and whether any rank wants to stop, on every rank.
fn agree(
    world: &Arc<dyn Communicator>,
    groups: &Groups,
    loss: f64,
    stop: bool,
) -> burn_frontier::Result<(f64, bool)> {
    let mine = if groups.at.tp == 0 { loss } else { 0.0 };
    let sums = Buffer::F64(vec![mine, f64::from(u8::from(stop))]);
    let sums = world.all_reduce(sums, Reduction::Sum)?.into_f64()?;
    Ok((sums[0], sums[1] > 0.0))
}

/// Mean loss of the first validation samples, on every rank.
fn validate(
    job: &Job,
    pipeline: &Pipeline<GptPart>,
    groups: &Groups,
) -> burn_frontier::Result<f64> {
    let settings = &job.settings;
    let samples = VALIDATION_SAMPLES
        .min(job.corpus.validation.len())
        .max(settings.layout.dp as u64);
    let cuts = micro_batches(
        samples,
        settings.micro_batch,
        groups.at.dp,
        settings.layout.dp,
    )?;
    let batches = read(&job.corpus.validation, 0, &cuts)?;
    let pass = StepContext {
        seed: settings.seed,
        step: None,
        recompute: settings.recompute,
    };
    let result = pipeline.evaluate(&batches, &pass)?;
    let mean = result.loss_sum / result.counted as f64;
    Ok(agree(&groups.world, groups, mean, false)?.0)
}

fn diverged(step: u64, what: &str, value: f64) -> Error {
    Error::config(
        format!("the {what} of step {step} is {value}: training has diverged"),
        "go on from the last checkpoint with a smaller --learning-rate; if that diverges too, remove the newest checkpoint first",
    )
}
