//! A training step of a GPT with 4 layers, hidden 256, 8 heads, sequence 256, batch 4, vocabulary 8192, in f32 with AdamW:
//! tokens per second and where the time goes, and what the parallel machinery costs at world size 1.
//!
//! `cargo bench --bench training_step [-- STEPS]`

#[path = "../examples/common/console.rs"]
#[macro_use]
mod console;

use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use burn_frontier::Recompute;
use burn_frontier::comm::{groups::Groups, local};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::model::Pass;
use burn_frontier::models::gpt::sharding::GptPart;
use burn_frontier::observe::progress::Screen;
use burn_frontier::observe::trace::SpanRecorder;
use burn_frontier::ops::adamw::{AdamWState, AdamWStep, adamw};
use burn_frontier::ops::gradient::seed;
use burn_frontier::optim::clip_factor;
use burn_frontier::parameter::{Module, Parameter, ParameterContext, Visitor};
use burn_frontier::pipeline::part::{MicroBatch, StepContext};
use burn_frontier::pipeline::run::Pipeline;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::zero::ZeroConfig;
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

fn batch(config: &GptConfig) -> Result<MicroBatch> {
    let sample = |i: usize| -> Vec<u32> {
        (0..=config.sequence)
            .map(|t| ((i * 7919 + t * 104_729) % config.vocabulary) as u32)
            .collect()
    };
    let samples: Vec<_> = (0..BATCH).map(sample).collect();
    MicroBatch::new(&samples, (0..BATCH as u64).collect())
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

    fn step(&mut self, batch: &MicroBatch) -> Result<Times> {
        let pass = Pass {
            seed: 1,
            step: None,
            samples: vec![],
            recompute_attention: false,
        };
        let start = Instant::now();
        let leaves = self.model.leaves();
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
            .take_gradients(&mut gradients)
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
struct Stack {
    pipeline: Pipeline<GptPart>,
    reducer: burn_frontier::zero::reducer::GradientReducer,
    optimizer: burn_frontier::zero::optimizer::ShardedAdamW,
    spans: SpanRecorder,
}

impl Stack {
    fn new(config: &GptConfig) -> Result<Self> {
        let groups = Groups::new(Layout::single(), local::single())?;
        let mut pipeline = config.init(Kind::default(), &groups, &context(&groups))?;
        let (reducer, optimizer) =
            ZeroConfig::new(0, false).init(&mut pipeline.parts, None, &groups)?;
        let spans = SpanRecorder::new(Instant::now(), 0, 0, true);
        Ok(Self {
            pipeline,
            reducer,
            optimizer,
            spans,
        })
    }

    fn step(&mut self, batch: &MicroBatch) -> Result<Times> {
        let pass = StepContext {
            seed: 1,
            step: Some(1),
            recompute: Recompute::None,
        };
        let start = Instant::now();
        let batches = std::slice::from_ref(batch);
        self.pipeline
            .forward_backward(batches, &pass, 1.0, &mut self.reducer, &mut self.spans)?;
        let spans = self.spans.take();
        let both = start.elapsed();
        let forward: f64 = spans
            .iter()
            .filter(|s| s.name().starts_with('F'))
            .map(|s| s.duration_us())
            .sum();
        let forward = Duration::from_secs_f64(forward * 1e-6).min(both);

        let start = Instant::now();
        let reduced = self.reducer.finish()?;
        let norm = self.optimizer.gradient_norm(&reduced)?;
        let reduce = start.elapsed();
        let start = Instant::now();
        self.optimizer.step(
            &mut self.pipeline.parts,
            reduced,
            1e-4,
            clip_factor(norm, Some(1.0)),
        )?;
        Ok(vec![
            ("forward", forward),
            ("backward, gradient buckets", both - forward),
            ("gradient norm", reduce),
            ("optimiser", start.elapsed()),
        ])
    }
}
