//! A training step of a GPT with AdamW: tokens per second and where the time goes, and what the parallel machinery costs at world
//! size 1. Unless told otherwise 4 layers, hidden 256, 8 heads, sequence 256, batch 4, vocabulary 8192, in fp32.
//!
//! `cargo bench --bench training_step [-- STEPS [--hidden 512 --sequence 1024 --batch 1 --precision bf16 ...]]`

#[path = "../examples/common/console.rs"]
#[macro_use]
mod console;
#[path = "training_step/peer.rs"]
mod peer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use burn_frontier::comm::Communicator;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, LocalOptions};
#[cfg(feature = "flex")]
use burn_frontier::device::memory::HostMemory;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::batch::TokenBatch;
use burn_frontier::models::gpt::model::Pass;
use burn_frontier::models::gpt::sharding::GptPart;
use burn_frontier::observe::progress::Screen;
use burn_frontier::observe::trace::SpanRecorder;
use burn_frontier::ops::adamw::{AdamWState, AdamWStep, adamw};
use burn_frontier::ops::gradient::seed;
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::{Module, Parameter, ParameterContext, Selection, Visitor};
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::precision::Precision;
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Error, Layout, Result};
use clap::Parser;

/// Times a training step, without and with the parallel machinery.
#[derive(Debug, Parser)]
struct Options {
    /// Steps of each, in turn
    #[arg(default_value_t = 5, value_parser = at_least_one)]
    steps: usize,
    /// Layers
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Width of the activations between blocks
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    /// Attention heads
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// Tokens of a sample
    #[arg(long, default_value_t = 256)]
    sequence: usize,
    /// Samples of a step
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    batch: usize,
    /// Tokens that there are
    #[arg(long, default_value_t = 8192)]
    vocabulary: usize,
    /// fp32, bf16 or fp16
    #[arg(long, default_value_t)]
    precision: Precision,
    /// Answer each line on standard input with a step, whose seconds and loss it is; the first weights go to this folder
    #[arg(long, value_name = "FOLDER")]
    peer: Option<PathBuf>,
    /// Cargo says it
    #[arg(long, hide = true)]
    bench: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&n| n > 0);
    number.ok_or_else(|| "expected a whole number, 1 at least".into())
}

impl Options {
    fn model(&self) -> Result<GptConfig> {
        let (hidden, sequence) = (self.hidden, self.sequence);
        let config = GptConfig::new(self.layers, hidden, self.heads, self.vocabulary, sequence);
        config.validate(&Layout::single(), false)?;
        Ok(config)
    }

    fn context(&self, groups: &Groups) -> ParameterContext {
        ParameterContext {
            dtype: self.precision.dtype(),
            ..ParameterContext::new(1, groups, Device::flex())
        }
    }
}

/// Large tensors of a step lie where those of the last one lay.
#[cfg(feature = "flex")]
#[global_allocator]
static MEMORY: HostMemory = HostMemory::new();

const STEP: AdamWStep = AdamWStep {
    learning_rate: 1e-4,
    weight_decay: 0.1,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    step: 1,
    gradient_scale: 1.0,
};

fn main() -> Result<()> {
    console::listen(&Screen::default());
    let options = Options::parse();
    let config = options.model()?;
    // One rank, as a program has it.
    local::run(1, &LocalOptions::default(), |world| match &options.peer {
        Some(folder) => peer::answer(&options, &config, folder, world),
        None => compare(&options, &config, world),
    })?;
    Ok(())
}

/// Both in turn.
fn compare(options: &Options, config: &GptConfig, world: Arc<dyn Communicator>) -> Result<()> {
    let steps = options.steps;
    let tokens = options.batch * config.sequence;
    say!(
        "{:.2} million parameters in {}, {tokens} tokens a step, {steps} steps each, in turn",
        config.parameters() as f64 / 1e6,
        options.precision
    );
    let batch = batch(config, options.batch)?;
    let mut plain = Plain::new(config, options)?;
    let mut stack = Stack::new(config, options, world)?;
    let (mut plain_times, mut stack_times) = (Vec::new(), Vec::new());
    for step in 0..=steps {
        let (a, b) = (plain.step(&batch)?, stack.step(&batch)?);
        // The first step warms up.
        if step > 0 {
            plain_times.push(a);
            stack_times.push(b);
        }
    }
    let whole = |times: &[Times]| median(times.iter().map(|t| t.iter().map(|(_, d)| *d).sum()));
    say!("\n{:<34}{:>10}{:>12}", "", "ms a step", "tokens/s");
    for (name, times) in [
        ("one graph, no machinery", &plain_times),
        ("burn-frontier, world size 1", &stack_times),
    ] {
        let time = whole(times);
        say!(
            "{name:<34}{:>10.1}{:>12.0}",
            time * 1e3,
            tokens as f64 / time
        );
        for (i, (phase, _)) in times[0].iter().enumerate() {
            let part = median(times.iter().map(|t| t[i].1));
            say!(
                "  {phase:<32}{:>10.1}{:>11.0} %",
                part * 1e3,
                100.0 * part / time
            );
        }
    }
    let ratios = plain_times.iter().zip(&stack_times).map(|(a, b)| {
        let sum = |times: &Times| times.iter().map(|(_, d)| *d).sum::<Duration>();
        sum(b).div_duration_f64(sum(a))
    });
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    say!(
        "\nmachinery / no machinery, median of pairs: {:.3}",
        ratios[ratios.len() / 2]
    );
    Ok(())
}

type Times = Vec<(&'static str, Duration)>;

fn median(values: impl Iterator<Item = Duration>) -> f64 {
    let mut values: Vec<f64> = values.map(|d| d.as_secs_f64()).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn batch(config: &GptConfig, samples: usize) -> Result<TokenBatch> {
    let sample = |i: usize| -> Vec<u32> {
        (0..=config.sequence)
            .map(|t| ((i * 7919 + t * 104_729) % config.vocabulary) as u32)
            .collect()
    };
    let samples: Vec<_> = (0..samples).map(sample).collect();
    let ids = (0..samples.len() as u64).collect();
    TokenBatch::new(&samples, ids)
}

/// The same mathematics as one autodiff graph and one optimiser call a parameter.
struct Plain {
    model: GptPart,
    states: Vec<AdamWState>,
}

impl Plain {
    fn new(config: &GptConfig, options: &Options) -> Result<Self> {
        let groups = Groups::new(Layout::single(), local::single())?;
        Ok(Self {
            model: config.init_part(0..config.layers, &options.context(&groups)),
            states: Vec::new(),
        })
    }

    fn step(&mut self, batch: &TokenBatch) -> Result<Times> {
        let pass = Pass {
            seed: 1,
            step: None,
            samples: vec![],
            recompute_attention: false,
        };
        let start = Instant::now();
        let all = Selection::all();
        let leaves = self.model.leaves(&all);
        let x = leaves.activations(None, batch, &pass)?;
        let missing = || Error::Internal("the only part has no head".into());
        let head = leaves.head.as_ref().ok_or_else(missing)?;
        let losses = head.loss(x, &batch.targets)?;
        let count = losses.dims()[0];
        let forward = start.elapsed();

        let start = Instant::now();
        let gradient = Tensor::full([count], 1.0 / count as f64, &Device::flex());
        let mut gradients = seed(losses, gradient).backward();
        let gradients: Vec<Option<Tensor<1>>> = leaves
            .take_gradients(&mut gradients, &all)
            .into_iter()
            .map(|(_, g)| g)
            .collect();
        let backward = start.elapsed();

        let start = Instant::now();
        let mut update = Update {
            gradients,
            before: std::mem::take(&mut self.states).into_iter(),
            states: Vec::new(),
            next: 0,
            result: Ok(()),
        };
        self.model.visit(&mut update);
        update.result?;
        self.states = update.states;
        Ok(vec![
            ("forward", forward),
            ("backward", backward),
            ("optimiser", start.elapsed()),
        ])
    }
}

struct Update {
    gradients: Vec<Option<Tensor<1>>>,
    /// Of the parameters that are still to come; none before the first step.
    before: std::vec::IntoIter<AdamWState>,
    states: Vec<AdamWState>,
    next: usize,
    result: Result<()>,
}

impl Visitor for Update {
    fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
        let i = self.next;
        self.next += 1;
        let Some(gradient) = self.gradients[i].take() else {
            return;
        };
        let gradient = gradient.cast(DType::F32);
        let (shape, count, dtype) = (p.value.shape(), p.count(), p.value.dtype());
        let state = self.before.next().unwrap_or_else(|| AdamWState {
            parameters: p.value.clone().reshape([count]).cast(DType::F32),
            first: gradient.zeros_like(),
            second: gradient.zeros_like(),
        });
        // The weights are the state's own, where they are of its type.
        p.value = Tensor::zeros([1; D], (&Device::flex(), dtype));
        match adamw(state, gradient, &STEP, dtype) {
            Ok((state, weights)) => {
                p.value = weights.reshape(shape);
                self.states.push(state);
            }
            Err(error) => self.result = Err(error),
        }
    }
}

/// As the training loop runs it.
struct Stack {
    state: TrainState<GptPart>,
    /// Of the last step.
    loss: f64,
}

impl Stack {
    fn new(config: &GptConfig, options: &Options, world: Arc<dyn Communicator>) -> Result<Self> {
        let groups = Groups::new(Layout::single(), world)?;
        let pipeline = config.init(Kind::default(), &groups, &options.context(&groups))?;
        let mut state = TrainState::new(pipeline, &[OptimizerConfig::new(0, false)], 1)?;
        state.spans = SpanRecorder::new(Instant::now(), 0, 0, true);
        Ok(Self {
            state,
            loss: f64::NAN,
        })
    }

    fn step(&mut self, batch: &TokenBatch) -> Result<Times> {
        let options = StepOptions::new(1e-4);
        let start = Instant::now();
        let batches = std::slice::from_ref(batch);
        let gradients = self.state.gradients(batches, &options)?;
        let all = start.elapsed();
        let spans = self.state.spans.take();
        let of = |first: char| {
            let spans = spans.iter().filter(|s| s.name().starts_with(first));
            Duration::from_secs_f64(spans.map(|s| s.duration_us()).sum::<f64>() * 1e-6)
        };
        let (forward, backward) = (of('F'), of('B'));

        let start = Instant::now();
        self.loss = self.state.update(gradients, &options)?.loss;
        Ok(vec![
            ("forward", forward),
            ("backward", backward),
            (
                "gradient buckets, norm",
                all.saturating_sub(forward + backward),
            ),
            ("optimiser", start.elapsed()),
        ])
    }
}
