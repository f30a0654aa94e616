//! Times one real tensor-parallel slice of a layer on the present device, so that a plan for many need not rest on a model of
//! what one does.

use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Shape, Tensor};

use burn_frontier::comm::{Buffer, Communicator, Group, Reduction, Traffic};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::batch::TokenBatch;
use burn_frontier::parameter::ParameterContext;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::pipeline::stage::{Output, Stage, StepContext};
use burn_frontier::plan::machine::Observation;
use burn_frontier::plan::{Job, Machine, memory, time};
use burn_frontier::{Error, Layout, Result};

/// Passes that [`time_layer`] times, after one that warms up; the median counts.
pub const TIMED: usize = 3;
/// Weight of the measurement, in runs: it is of the very passes that are planned.
const RUNS: usize = 25;

/// Seconds of one forward and backward pass of one micro-batch through one rank's slice of a layer of `job`, without
/// communication. Allocates the slice and its activations on `device`, which is without autodiff.
///
/// # Errors
/// A job that cannot run.
pub fn time_layer(job: &Job<GptConfig>, device: &Device) -> Result<f64> {
    job.validate()?;
    let mut model = job.model.clone();
    // A layer between the ends has neither embedding nor head.
    model.layers = 3;
    let tp: Group = Arc::new(Alone::new(job.layout.tp));
    let dtype = job.precision.dtype();
    let context = ParameterContext {
        seed: 1,
        tp,
        device: device.clone(),
        dtype,
        sequence_parallel: job.sequence_parallel,
    };
    let part = model.init_part(1..2, &context);
    let batch = TokenBatch {
        tokens: vec![0; job.micro_batch_tokens()],
        targets: vec![0; job.micro_batch_tokens()],
        batch: job.micro_batch as usize,
        positions: (0..job.micro_batch).collect(),
    };
    let shape = Shape::from(part.activation_shape(&batch));
    let values =
        || -> Tensor<3> { Tensor::random(shape.clone(), Distribution::Default, (device, dtype)) };
    let context = StepContext {
        seed: 1,
        step: Some(1),
        recompute: job.recompute,
        ..StepContext::default()
    };
    let mut times = Vec::new();
    for _ in 0..=TIMED {
        let (input, gradient) = (values(), values());
        wait(&input)?;
        wait(&gradient)?;
        let start = Instant::now();
        let forward = part.forward(vec![input.into()], &batch, &context)?;
        if let Output::Activations(outputs) = forward.output {
            outputs
                .into_iter()
                .try_for_each(|output| wait(&output.tensor()?))?;
        }
        let mut gradients = Vec::new();
        let seed = vec![gradient.into()];
        let back = forward.tape.backward(seed, &mut |g| {
            gradients.extend(g);
            Ok(())
        })?;
        back.into_iter()
            .try_for_each(|gradient| wait(&gradient.tensor()?))?;
        times.push(start.elapsed().as_secs_f64());
    }
    let mut times = times.split_off(1);
    times.sort_by(f64::total_cmp);
    Ok(times[TIMED / 2])
}

/// Bytes that [`time_layer`] allocates on the device, as the planner reckons them: parameters, gradients, what the forward pass
/// keeps and what the backward pass needs besides.
///
/// # Errors
/// A job that cannot run.
pub fn layer_bytes(job: &Job<GptConfig>, machine: &Machine) -> Result<f64> {
    job.validate()?;
    let mut alone = job.clone();
    alone.model.layers = 3;
    alone.layout = Layout {
        tp: job.layout.tp,
        pp: 3,
        ..Layout::single()
    }
    .validated()?;
    alone.schedule = Kind::OneForwardOneBackward;
    alone.global_batch = job.micro_batch;
    alone.zero = 0;
    let stages = memory::stages(&alone, machine)?;
    let layer = &stages[1];
    Ok(layer.weights + layer.gradients + layer.activations + layer.working)
}

/// Waits until the device has computed `x`, by asking for one element.
fn wait(x: &Tensor<3>) -> Result<()> {
    let one = x.clone().slice([0..1, 0..1, 0..1]).into_data();
    match one.shape().num_elements() {
        1 => Ok(()),
        n => Err(Error::Internal(format!("one element has {n}"))),
    }
}

/// `machine`, corrected for the shape of `job` by what [`time_layer`] measured.
///
/// # Errors
/// A job that cannot run.
pub fn corrected(job: &Job<GptConfig>, machine: &Machine, seconds: f64) -> Result<Machine> {
    let observation = Observation {
        tokens: job.micro_batch_tokens(),
        hidden: job.model.hidden,
        tp: job.layout.tp,
        ratio: seconds / time::layer_seconds(job, machine)?,
        runs: RUNS,
    };
    let mut corrected = machine.clone();
    corrected.correction = machine.correction.with(observation);
    Ok(corrected)
}

/// One rank of a group whose other ranks are not there: what it would get from them is made up of its own.
#[derive(Debug)]
struct Alone {
    members: Vec<usize>,
}

impl Alone {
    fn new(ranks: usize) -> Self {
        Self {
            members: (0..ranks).collect(),
        }
    }
}

/// `data` so often, or the first of so many pieces.
fn resized(data: Buffer, times: usize, pieces: usize) -> Buffer {
    fn of<T: Copy>(v: Vec<T>, times: usize, pieces: usize) -> Vec<T> {
        let mut v = v.repeat(times);
        v.truncate(v.len() / pieces);
        v
    }
    match data {
        Buffer::F32(v) => Buffer::F32(of(v, times, pieces)),
        Buffer::F64(v) => Buffer::F64(of(v, times, pieces)),
        Buffer::F16(v) => Buffer::F16(of(v, times, pieces)),
        Buffer::BF16(v) => Buffer::BF16(of(v, times, pieces)),
        Buffer::I64(v) => Buffer::I64(of(v, times, pieces)),
        Buffer::U8(v) => Buffer::U8(of(v, times, pieces)),
    }
}

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn members(&self) -> &[usize] {
        &self.members
    }

    fn label(&self) -> &str {
        "alone"
    }

    fn all_reduce(&self, data: Buffer, _: Reduction) -> Result<Buffer> {
        Ok(data)
    }

    fn reduce_scatter(&self, data: Buffer) -> Result<Buffer> {
        Ok(resized(data, 1, self.size()))
    }

    fn all_gather(&self, data: Buffer) -> Result<Buffer> {
        Ok(resized(data, self.size(), 1))
    }

    fn all_to_all(&self, data: Buffer) -> Result<Buffer> {
        Ok(data)
    }

    fn broadcast(&self, data: Buffer, _: usize) -> Result<Buffer> {
        Ok(data)
    }

    fn send(&self, _: Buffer, _: usize) -> Result<()> {
        Ok(())
    }

    fn recv(&self, from: usize) -> Result<Buffer> {
        Err(Error::Internal(format!("rank {from} is not there")))
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn subgroup(&self, _: &str, ranks: &[usize]) -> Result<Group> {
        Ok(Arc::new(Self::new(ranks.len())))
    }

    fn failure(&self) -> Option<Error> {
        None
    }

    fn fail(&self, _: Error) {}

    fn traffic(&self) -> Vec<Traffic> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_frontier::{Precision, Recompute};

    #[test]
    fn a_slice_is_timed_and_the_plan_follows_it() {
        let machine = Machine::load("laptop").unwrap();
        let model = GptConfig::new(8, 64, 4, 300, 32);
        for (tp, sequence_parallel) in [(1, false), (2, false), (4, true)] {
            let job = Job {
                precision: Precision::Fp32,
                recompute: Recompute::Full,
                sequence_parallel,
                ..Job::new(
                    model.clone(),
                    Layout {
                        tp,
                        ..Layout::single()
                    },
                )
            };
            let seconds = time_layer(&job, &Device::flex()).unwrap();
            assert!(seconds > 0.0);
            let modelled = time::layer_seconds(&job, &machine).unwrap();
            let slower = corrected(&job, &machine, 1.5 * modelled).unwrap();
            let step = |machine: &Machine| time::step(&job, machine).unwrap();
            let ratio = step(&slower).gemm / step(&machine).gemm;
            assert!(ratio > 1.2, "{ratio}");
        }
    }

    #[test]
    fn a_slice_needs_its_weights_and_gradients_at_least_and_less_the_more_ranks_share_it() {
        let machine = Machine::load("laptop").unwrap();
        let bytes = |tp, pp| {
            let model = GptConfig::new(8, 64, 4, 300, 32);
            let job = Job::new(
                model,
                Layout {
                    tp,
                    pp,
                    ..Layout::single()
                },
            );
            layer_bytes(&job, &machine).unwrap()
        };
        // 12 h^2 weights of two bytes, and gradients in f32.
        let least = 12.0 * 64.0 * 64.0 * (2.0 + 4.0);
        assert!(
            (least..2.0 * least).contains(&bytes(1, 1)),
            "{}",
            bytes(1, 1)
        );
        assert!(bytes(2, 1) < bytes(1, 1));
        assert_eq!(bytes(1, 4), bytes(1, 1));
    }
}
