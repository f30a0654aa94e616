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
mod words;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use burn_frontier::checkpoint::{self, Checkpoint};
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, FlightRecorder, LocalOptions};
use burn_frontier::comm::{Buffer, Communicator, Reduction};
use burn_frontier::data::{Sampler, Tokenizer};
#[cfg(feature = "flex")]
use burn_frontier::device::memory::HostMemory;
use burn_frontier::device::{self, Choice};
use burn_frontier::models::gpt::batch::TokenBatch;
use burn_frontier::models::gpt::sharding::GptPart;
use burn_frontier::models::gpt::{GptConfig, names};
use burn_frontier::observe::progress::Screen;
use burn_frontier::observe::trace::{Span, SpanRecorder};
use burn_frontier::ops::{kernels, tuning};
use burn_frontier::optim::scaler::LossScaler;
use burn_frontier::optim::{AdamWConfig, OptimizerConfig, Rule};
use burn_frontier::parameter::{ParameterContext, load_parameters};
use burn_frontier::pipeline::micro_batches::micro_batches;
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Error, Precision};

use corpus::Corpus;
use finish::finish;
use options::Options;
use report::{Measured, Reporter};
use saved::{Saved, carry_on, same_run};
use settings::Settings;
use signals::Signals;

/// Large tensors of a step lie where those of the last one lay.
#[cfg(feature = "flex")]
#[global_allocator]
static MEMORY: HostMemory = HostMemory::new();

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
    let ended = run(screen).map_err(words::with_flags);
    console::end(ended.unwrap_or_else(console::failed))
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
    let error = words::with_flags(error.clone().into());
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
        load_parameters(&mut pipeline.chunks, imported, &groups.tp)?;
    }

    // The optimiser: gradients summed over the replicas, state split over them.
    let adamw = AdamWConfig {
        weight_decay: settings.weight_decay,
        ..AdamWConfig::default()
    };
    let optimizer =
        OptimizerConfig::new(settings.zero, settings.overlap).with_rule(Rule::AdamW(adamw));
    let mut state = TrainState::new(pipeline, &[optimizer], settings.seed)?;
    state.spans = SpanRecorder::new(job.origin, world.rank(), groups.at.pp, true);
    if settings.precision == Precision::Fp16 {
        state.scaler = LossScaler::dynamic();
    }
    if let Some(checkpoint) = &job.resume {
        let saved: Saved = checkpoint.state()?;
        state.restore(&saved.progress(checkpoint.step()), checkpoint)?;
    }

    let cuts = micro_batches(
        settings.global_batch,
        settings.micro_batch,
        groups.at.dp,
        settings.layout.dp,
    )?;
    let mut reporter = Reporter::new(job, &world, state.steps())?;
    let mut last_spans = Vec::new();

    while state.steps() < settings.steps {
        let step = state.steps() + 1;
        let start = Instant::now();
        state.spans.take();

        let first_sample = (step - 1) * settings.global_batch;
        let batches = read(&job.corpus.train, first_sample, &cuts)?;
        let options = StepOptions {
            optimizer: 0,
            rate: settings.rate.at(step),
            clip: settings.clip,
            recompute: settings.recompute,
        };
        let done = state.step(&batches, &options)?;
        last_spans = state.spans.take();

        // Every rank learns whether any was asked to stop.
        let stop = any(&world, job.signals.stop().is_some())?;
        let seconds = start.elapsed().as_secs_f64();
        let last = step == settings.steps;
        let validation = (last || step.is_multiple_of(settings.validate_every))
            .then(|| validate(job, &state))
            .transpose()?;
        let measured = Measured {
            step,
            loss: done.loss,
            norm: done.norm,
            rate: options.rate,
            seconds,
            validation,
            scaler: state.scaler,
        };
        reporter.step(measured, &world)?;

        if stop || last || step.is_multiple_of(settings.save_every) {
            let saved = saved::state(job, &state.progress())?;
            let (folder, keep) = (settings.checkpoints(), settings.keep);
            checkpoint::save(&folder, step, &saved, state.pieces(), world.as_ref(), keep)?;
        }
        if stop {
            break;
        }
    }
    reporter.finish();
    Ok(RankResult {
        spans: last_spans,
        finished: state.steps(),
    })
}

/// This replica's micro-batches of the step that starts at global sample `first`.
fn read(
    sampler: &Sampler,
    first: u64,
    cuts: &[std::ops::Range<u64>],
) -> burn_frontier::Result<Vec<TokenBatch>> {
    cuts.iter()
        .map(|cut| {
            let samples: burn_frontier::Result<Vec<_>> = cut
                .clone()
                .map(|position| sampler.sample(first + position))
                .collect();
            TokenBatch::new(&samples?, cut.clone().collect())
        })
        .collect()
}

/// Whether any rank says so, on every rank.
fn any(world: &Arc<dyn Communicator>, mine: bool) -> burn_frontier::Result<bool> {
    let sum = world.all_reduce(Buffer::I64(vec![i64::from(mine)]), Reduction::Sum)?;
    Ok(sum.into_i64()?.iter().any(|&n| n > 0))
}

/// Mean loss of the first validation samples, on every rank.
fn validate(job: &Job, state: &TrainState<GptPart>) -> burn_frontier::Result<f64> {
    let settings = &job.settings;
    let (layout, replica) = (settings.layout, state.groups().at.dp);
    let samples = VALIDATION_SAMPLES
        .min(job.corpus.validation.len())
        .max(layout.dp as u64);
    let cuts = micro_batches(samples, settings.micro_batch, replica, layout.dp)?;
    state.evaluate(&read(&job.corpus.validation, 0, &cuts)?)
}
