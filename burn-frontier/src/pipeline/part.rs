//! What a pipeline needs to know of a model: how one part of it goes forward and back.

use std::ops::Range;

use burn::tensor::Tensor;

use super::schedule::MAX_PASSES;
use super::segment::{BackwardFn, SegmentGradients};
use crate::error::{Error, Result};
use crate::parameter::{Module, ParameterGradient};
use crate::recompute::Recompute;

/// Samples that go through the pipeline together.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// Input tokens, row-major `[batch, sequence]`.
    pub tokens: Vec<i64>,
    /// The token that follows each; negative: not counted.
    pub targets: Vec<i64>,
    /// Number of samples.
    pub batch: usize,
    /// Their positions in the global batch.
    pub positions: Vec<u64>,
}

impl MicroBatch {
    /// Splits samples of `sequence + 1` tokens into inputs and targets. `positions`: where they stand in the global batch.
    ///
    /// # Errors
    /// No samples, samples of fewer than two tokens or of different lengths, or other than one position a sample.
    pub fn new(samples: &[Vec<u32>], positions: Vec<u64>) -> Result<Self> {
        let length = samples.first().map_or(0, Vec::len);
        if let Some(other) = samples.iter().position(|sample| sample.len() != length) {
            return Err(Error::config(
                format!(
                    "a micro-batch whose sample 0 has {length} tokens, and sample {other} has {}",
                    samples[other].len()
                ),
                "give every sample as many tokens",
            ));
        }
        if length < 2 {
            return Err(Error::config(
                format!(
                    "a micro-batch of {} samples of {length} tokens",
                    samples.len()
                ),
                "give one sample at least, of two tokens at least: each but the last has the next as its target",
            ));
        }
        let rows = |range: fn(&[u32]) -> &[u32]| {
            let tokens = samples.iter().flat_map(|sample| range(sample));
            tokens.map(|&token| i64::from(token)).collect()
        };
        let batch = Self {
            tokens: rows(|sample| &sample[..sample.len() - 1]),
            targets: rows(|sample| &sample[1..]),
            batch: samples.len(),
            positions,
        };
        batch.check()?;
        Ok(batch)
    }

    /// Fails unless every sample has as many tokens, every token a target, and every sample a position.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<()> {
        let (tokens, batch) = (self.tokens.len(), self.batch);
        let fail = |what: String, remedy: &str| Err(Error::config(what, remedy));
        if tokens == 0 || batch == 0 || !tokens.is_multiple_of(batch) {
            return fail(
                format!("a micro-batch of {tokens} tokens for {batch} samples"),
                "give every sample as many tokens, one at least",
            );
        }
        if self.targets.len() != tokens {
            return fail(
                format!(
                    "a micro-batch of {} targets for {tokens} tokens",
                    self.targets.len()
                ),
                "give every token a target, a negative one where it does not count",
            );
        }
        if self.positions.len() != batch {
            return fail(
                format!(
                    "a micro-batch of {} positions for {batch} samples",
                    self.positions.len()
                ),
                "say of every sample where it stands in the global batch",
            );
        }
        Ok(())
    }

    /// Tokens a sample.
    pub fn sequence(&self) -> usize {
        self.tokens.len() / self.batch.max(1)
    }

    /// Targets that count.
    pub fn counted(&self) -> usize {
        self.targets.iter().filter(|&&t| t >= 0).count()
    }
}

/// This replica's share of a global batch, cut into micro-batches of at most `size`: ranges of positions in the batch.
/// Neither the replicas nor the micro-batches need to divide the batch: the loss is divided once, by the global count.
///
/// # Errors
/// Fewer samples than replicas, micro-batches of no samples, or more of them than a step can run.
pub fn micro_batches(
    global_batch: u64,
    size: u64,
    replica: usize,
    replicas: usize,
) -> Result<Vec<Range<u64>>> {
    let share = share(global_batch, size, replica, replicas)?;
    let count = (share.end - share.start).div_ceil(size);
    if count > MAX_PASSES as u64 {
        return Err(Error::config(
            format!(
                "a global batch of {global_batch} gives a replica {count} micro-batches of {size}"
            ),
            format!("use at most {MAX_PASSES}: larger micro-batches, or a smaller global batch"),
        ));
    }
    let cuts = (0..count).map(|i| share.start + i * size);
    Ok(cuts
        .map(|first| first..share.end.min(first.saturating_add(size)))
        .collect())
}

/// How many micro-batches [`micro_batches`] gives, if they are not too many.
///
/// # Errors
/// Fewer samples than replicas, or micro-batches of no samples.
pub fn count_micro_batches(
    global_batch: u64,
    size: u64,
    replica: usize,
    replicas: usize,
) -> Result<u64> {
    let share = share(global_batch, size, replica, replicas)?;
    Ok((share.end - share.start).div_ceil(size))
}

/// This replica's samples.
fn share(global_batch: u64, size: u64, replica: usize, replicas: usize) -> Result<Range<u64>> {
    let n = replicas as u64;
    if n == 0 || replica >= replicas {
        return Err(Error::config(
            format!("there is no replica {replica} of {replicas}"),
            "count them from 0",
        ));
    }
    if global_batch < n {
        return Err(Error::config(
            format!("a global batch of {global_batch} cannot feed dp {replicas}"),
            format!("use a global batch of at least {replicas}, or --dp {global_batch} or less"),
        ));
    }
    if size == 0 {
        return Err(Error::config(
            "a micro-batch of 0 samples",
            "use at least 1",
        ));
    }
    // The product may need more than 64 bits, the quotient does not.
    let until =
        |replica: u64| (u128::from(global_batch) * u128::from(replica) / u128::from(n)) as u64;
    Ok(until(replica as u64)..until(replica as u64 + 1))
}

/// What a pass is done for. The default is an evaluation.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepContext {
    /// Seed of the run, for dropout.
    pub seed: u64,
    /// Optimiser step, for dropout; `None` outside training.
    pub step: Option<u64>,
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
}

/// A part of a model: consecutive layers. The first part takes tokens, the last gives losses.
pub trait PipelinePart: Module {
    /// Fails unless the model can take a micro-batch that is whole in itself ([`MicroBatch::check`]). Every part is asked
    /// before anything is communicated, so all of a model's parts answer alike.
    ///
    /// # Errors
    /// What the model cannot take.
    fn check(&self, _batch: &MicroBatch) -> Result<()> {
        Ok(())
    }

    /// Goes forward. `input` is `[batch, seq, hidden]` from the previous part, none for the first.
    ///
    /// # Errors
    /// No input for a part that needs one, or a micro-batch that is not of the model's shape.
    fn forward(
        &self,
        input: Option<Tensor<3>>,
        batch: &MicroBatch,
        context: &StepContext,
    ) -> Result<Forward>;

    /// Shape of the activations that parts hand on for a micro-batch.
    fn activation_shape(&self, batch: &MicroBatch) -> [usize; 3];
}

/// What a part gives.
pub enum Output {
    /// Activations for the next part.
    Activation(Tensor<3>),
    /// The loss of every token `[batch * sequence]`.
    Losses(Tensor<1>),
}

/// Result of a forward pass: the value and the way back.
pub struct Forward {
    /// The value.
    pub output: Output,
    /// The way back.
    pub tape: Tape,
}

/// The way back through a part.
pub struct Tape {
    /// Through the pieces, in forward order.
    pub segments: Vec<BackwardFn<3>>,
    /// Through the loss, for the last part.
    pub loss: Option<BackwardFn<1>>,
    /// Number of losses, for the last part.
    pub losses: Option<usize>,
}

/// The gradient that a backward pass starts from.
pub enum Seed {
    /// Gradient of the part's activations.
    Activation(Tensor<3>),
    /// Gradient of every token's loss.
    Losses(Tensor<1>),
}

impl Tape {
    /// Goes back, handing each piece's parameter gradients to `sink` as they come. Gives the gradient of the part's input.
    ///
    /// # Errors
    /// Those of `sink` and of the pieces, or a seed of the other kind than the part's output.
    pub fn backward(
        self,
        seed: Seed,
        sink: &mut dyn FnMut(Vec<ParameterGradient>) -> Result<()>,
    ) -> Result<Option<Tensor<3>>> {
        let mut gradient = match (seed, self.loss) {
            (Seed::Activation(gradient), None) => Some(gradient),
            (Seed::Losses(gradient), Some(loss)) => {
                let SegmentGradients { input, parameters } = loss(gradient)?;
                sink(parameters)?;
                input
            }
            (Seed::Activation(_), Some(_)) => {
                return Err(Error::Internal(
                    "a part that ends in losses goes back from activations".into(),
                ));
            }
            (Seed::Losses(_), None) => {
                return Err(Error::Internal(
                    "a part without a loss goes back from losses".into(),
                ));
            }
        };
        for segment in self.segments.into_iter().rev() {
            let above = gradient.ok_or_else(|| {
                Error::Internal("a piece behind the first of a part was given no input".into())
            })?;
            let SegmentGradients { input, parameters } = segment(above)?;
            sink(parameters)?;
            gradient = input;
        }
        Ok(gradient)
    }
}
