//! Samples of a fixed length packed across documents, in an order that (seed, sample number) decides.
//!
//! As in Megatron-LM's GPT dataset, an epoch shuffles the documents, lays them end to end, cuts them into samples of
//! `sequence` tokens plus one shared with the next sample (the target of the last), and shuffles the samples. The
//! tokens at the end of an epoch that fill no sample are left out of it. Unlike there, both shuffles are
//! [`Permutation`]s of their own epoch: sample `i` needs no state, so a run continues from "samples consumed"
//! alone, on any number of ranks.

use std::sync::{Arc, Mutex, PoisonError};

use super::dataset::{Dataset, check_vocabulary};
use super::permutation::Permutation;
use crate::error::{Error, Result};

/// Orders kept: around the end of an epoch, ranks and prefetching read from two.
const KEPT_EPOCHS: usize = 2;
/// Names the two shuffles in a permutation's key.
const DOCUMENTS: u64 = 0;
const SAMPLES: u64 = 1;

/// How a dataset becomes samples.
#[derive(Debug, Clone, Copy)]
pub struct SamplerConfig {
    /// Tokens that a model sees at once; a sample has one more.
    pub sequence: usize,
    /// Ids that the model can embed; a sample with another id is an error.
    pub vocabulary: usize,
    /// Decides the order, together with the epoch.
    pub seed: u64,
}

impl SamplerConfig {
    /// Samples of `dataset`.
    ///
    /// # Errors
    /// The sequence is empty, or the dataset is shorter than one sample.
    pub fn init(self, dataset: &Dataset) -> Result<Sampler> {
        let tokens = dataset.tokens();
        let samples = tokens
            .saturating_sub(1)
            .checked_div(self.sequence as u64)
            .ok_or_else(|| Error::config("the sequence length is 0", "use at least 1"))?;
        if samples == 0 {
            return Err(Error::config(
                format!(
                    "{tokens} tokens in {} documents hold no sample of {} + 1",
                    dataset.documents(),
                    self.sequence
                ),
                "give more text, a larger weight in the split, or a shorter sequence",
            ));
        }
        Ok(Sampler {
            dataset: dataset.clone(),
            config: self,
            samples,
            epochs: Arc::default(),
        })
    }
}

/// Gives sample number `i`, for any `i`. Clones share the dataset and the order.
#[derive(Debug, Clone)]
pub struct Sampler {
    dataset: Dataset,
    config: SamplerConfig,
    samples: u64,
    epochs: Arc<Mutex<Vec<Arc<Epoch>>>>,
}

impl Sampler {
    /// The `sequence + 1` tokens of sample `index`: samples consumed before, over all ranks and epochs.
    ///
    /// # Errors
    /// The file has an invalid token, or one outside the vocabulary.
    pub fn sample(&self, index: u64) -> Result<Vec<u32>> {
        let (number, within) = (index / self.samples, index % self.samples);
        let epoch = self.epoch(number);
        let slot = Permutation::new(self.samples, [self.config.seed, number, SAMPLES]).at(within);
        let tokens = epoch.read(
            &self.dataset,
            slot * self.config.sequence as u64,
            self.config.sequence + 1,
        )?;
        check_vocabulary(&tokens, self.config.vocabulary)?;
        Ok(tokens)
    }

    /// Samples of an epoch; at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.samples
    }

    /// The order of an epoch. Whoever needs it first computes it while the others wait.
    fn epoch(&self, number: u64) -> Arc<Epoch> {
        // A panic elsewhere cannot leave a half-made order here, so a poisoned lock is still good.
        let mut kept = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(epoch) = kept.iter().find(|epoch| epoch.number == number) {
            return epoch.clone();
        }
        let epoch = Arc::new(Epoch::new(&self.dataset, self.config.seed, number));
        if kept.len() == KEPT_EPOCHS {
            kept.remove(0);
        }
        kept.push(epoch.clone());
        epoch
    }
}

/// The documents of one epoch, laid end to end. Memory: eight bytes a document.
#[derive(Debug)]
struct Epoch {
    number: u64,
    documents: Permutation,
    /// First token of the document at each place, and the end.
    starts: Vec<u64>,
}

impl Epoch {
    fn new(dataset: &Dataset, seed: u64, number: u64) -> Self {
        let count = dataset.documents();
        let documents = Permutation::new(count as u64, [seed, number, DOCUMENTS]);
        let mut starts = Vec::with_capacity(count + 1);
        let mut next = 0;
        for place in 0..count as u64 {
            starts.push(next);
            next += dataset.document_tokens(documents.at(place) as usize);
        }
        starts.push(next);
        Self {
            number,
            documents,
            starts,
        }
    }

    /// `count` tokens from token `begin` of the epoch on.
    fn read(&self, dataset: &Dataset, begin: u64, count: usize) -> Result<Vec<u32>> {
        let mut tokens = Vec::with_capacity(count);
        let end = begin + count as u64;
        // The last document that starts at or before `begin`: empty ones before it share its start.
        let first = self
            .starts
            .partition_point(|&start| start <= begin)
            .saturating_sub(1);
        for (place, bounds) in self.starts.windows(2).enumerate().skip(first) {
            let (from, to) = (begin.max(bounds[0]), end.min(bounds[1]));
            if from >= end {
                break;
            }
            let document = self.documents.at(place as u64) as usize;
            dataset.read(document, from - bounds[0]..to - bounds[0], &mut tokens)?;
        }
        if tokens.len() != count {
            return Err(Error::Internal(format!(
                "{count} tokens at {begin} of an epoch, found {}",
                tokens.len()
            )));
        }
        Ok(tokens)
    }
}
