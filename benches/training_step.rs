//! A training step of a GPT with 4 layers, hidden 256, 8 heads, sequence 256, batch 4, vocabulary 8192, in f32 with AdamW:
//! tokens per second and where the time goes, and what the parallel machinery costs at world size 1.
//!
//! `cargo bench --bench training_step [-- STEPS]`

#[path = "../examples/common/console.rs"]
#[macro_use]
mod console;

use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use burn_frontier::comm::{groups::Groups, local};
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
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Error, Layout, Result};

const BATCH: usize = 4;
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
    let steps: usize = std::env::args()
        .skip(1)
        .find_map(|a| a.parse().ok())
        .unwrap_or(5);
    let config = GptConfig::new(4, 256, 8, 8192, 256);
    let tokens = BATCH * config.sequence;
    say!(
        "{:.2} million parameters, {tokens} tokens a step, {steps} steps each, in turn",
        config.parameters() as f64 / 1e6
    );
    let batch = batch(&config)?;
    let mut plain = Plain::new(&config)?;
    let mut stack = Stack::new(&config)?;
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

fn batch(config: &GptConfig) -> Result<TokenBatch> {
    let sample = |i: usize| -> Vec<u32> {
        (0..=config.sequence)
            .map(|t| ((i * 7919 + t * 104_729) % config.vocabulary) as u32)
            .collect()
    };
    let samples: Vec<_> = (0..BATCH).map(sample).collect();
    TokenBatch::new(&samples, (0..BATCH as u64).collect())
}

fn context(groups: &Groups) -> ParameterContext {
    ParameterContext::new(1, groups, Device::flex())
}

/// The same mathematics as one autodiff graph and one optimiser call a parameter.
struct Plain {
    model: GptPart,
    moments: Vec<(Tensor<1>, Tensor<1>)>,
}

impl Plain {
    fn new(config: &GptConfig) -> Result<Self> {
        let groups = Groups::new(Layout::single(), local::single())?;
        Ok(Self {
            model: config.init_part(0..config.layers, &context(&groups)),
            moments: Vec::new(),
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
            moments: std::mem::take(&mut self.moments),
            next: 0,
            result: Ok(()),
        };
        self.model.visit(&mut update);
        update.result?;
        self.moments = update.moments;
        Ok(vec![
            ("forward", forward),
            ("backward", backward),
            ("optimiser", start.elapsed()),
        ])
    }
}

struct Update {
    gradients: Vec<Option<Tensor<1>>>,
    moments: Vec<(Tensor<1>, Tensor<1>)>,
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
        if self.moments.len() <= i {
            self.moments
                .push((gradient.zeros_like(), gradient.zeros_like()));
        }
        let empty = || Tensor::<1>::zeros([1], &Device::flex());
        let (first, second) = std::mem::replace(&mut self.moments[i], (empty(), empty()));
        let (shape, count) = (p.value.shape(), p.count());
        let parameters = p.value.clone().reshape([count]);
        let state = AdamWState {
            parameters,
            first,
            second,
        };
        match adamw(state, gradient, &STEP, DType::F32) {
            Ok((new, _)) => {
                p.value = new.parameters.reshape(shape);
                self.moments[i] = (new.first, new.second);
            }
            Err(error) => self.result = Err(error),
        }
    }
}

/// As the training loop runs it.
struct Stack(TrainState<GptPart>);

impl Stack {
    fn new(config: &GptConfig) -> Result<Self> {
        let groups = Groups::new(Layout::single(), local::single())?;
        let pipeline = config.init(Kind::default(), &groups, &context(&groups))?;
        let mut state = TrainState::new(pipeline, &[OptimizerConfig::new(0, false)], 1)?;
        state.spans = SpanRecorder::new(Instant::now(), 0, 0, true);
        Ok(Self(state))
    }

    fn step(&mut self, batch: &TokenBatch) -> Result<Times> {
        let options = StepOptions::new(1e-4);
        let start = Instant::now();
        let batches = std::slice::from_ref(batch);
        let gradients = self.0.gradients(batches, &options)?;
        let all = start.elapsed();
        let spans = self.0.spans.take();
        let of = |first: char| {
            let spans = spans.iter().filter(|s| s.name().starts_with(first));
            Duration::from_secs_f64(spans.map(|s| s.duration_us()).sum::<f64>() * 1e-6)
        };
        let (forward, backward) = (of('F'), of('B'));

        let start = Instant::now();
        self.0.update(gradients, &options)?;
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
