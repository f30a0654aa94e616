//! Samples of tokens.

use crate::error::{Error, Result};
use crate::pipeline::stage::Batch;

/// A micro-batch of samples of tokens.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    /// Input tokens, row-major `[batch, sequence]`.
    pub tokens: Vec<i64>,
    /// The token that follows each; negative: not counted.
    pub targets: Vec<i64>,
    /// Number of samples.
    pub batch: usize,
    /// Their positions in the global batch.
    pub positions: Vec<u64>,
}

impl TokenBatch {
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

    /// Tokens a sample.
    pub fn sequence(&self) -> usize {
        self.tokens.len() / self.batch.max(1)
    }
}

impl Batch for TokenBatch {
    /// Targets that count.
    fn count(&self) -> u64 {
        self.targets.iter().filter(|&&t| t >= 0).count() as u64
    }

    fn samples(&self) -> &[u64] {
        &self.positions
    }

    /// Fails unless every sample has as many tokens, every token a target, and every sample a position.
    fn check(&self) -> Result<()> {
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
}
