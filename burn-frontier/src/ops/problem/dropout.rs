//! A site of dropout and its mask.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::random::Philox;

/// The mask of one dropout site for a part of a global tensor `[sample, d0, d1, d2]`.
///
/// Element (d1, d2) of (sample, d0) takes the random word of row d1, column d2 of site `sample * global + d0`
/// ([`Philox::row`]).
#[derive(Debug, Clone)]
pub struct Dropout {
    /// Probability that an element is dropped, in [0, 1).
    pub probability: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser step.
    pub step: u64,
    /// Name of the site, for instance `layers.3.attention.dropout`.
    pub name: String,
    /// Positions of the samples in the global batch.
    pub samples: Vec<u64>,
    /// Global length of d0.
    pub global: usize,
    /// Where the part starts in d0, d1, d2.
    pub start: [usize; 3],
    /// Lengths of the part in d0, d1, d2.
    pub len: [usize; 3],
}

impl Dropout {
    /// The random words of the site.
    pub fn words(&self) -> Philox {
        Philox::new(self.seed, self.step, &self.name)
    }

    /// A random word below it drops its element.
    pub fn threshold(&self) -> u32 {
        (self.probability * 4_294_967_296.0)
            .round()
            .min(4_294_967_295.0) as u32
    }

    /// The mask `[samples, len0, len1, len2]`: 0 where dropped, `1 / (1 - probability)` elsewhere.
    pub fn mask(&self, device: &Device, dtype: DType) -> Tensor<4> {
        let keep = 1.0 / (1.0 - self.probability);
        let [len0, len1, len2] = self.len;
        let shape = [self.samples.len(), len0, len1, len2];
        if dtype == DType::F64 {
            let data = TensorData::new(self.factors(keep), shape);
            return Tensor::from_data(data, (device, dtype));
        }
        let data = TensorData::new(self.factors(keep as f32), shape);
        Tensor::<4>::from_data(data, (device, DType::F32)).cast(dtype)
    }

    /// The mask's elements: 0 where dropped, `keep` elsewhere.
    fn factors<T: Copy + Default + Send + Sync>(&self, keep: T) -> Vec<T> {
        let [len0, len1, len2] = self.len;
        let (words, threshold) = (self.words(), self.threshold());
        let mut factors = vec![T::default(); self.samples.len() * len0 * len1 * len2];
        let rows = factors.par_chunks_mut(len2.max(1)).enumerate();
        rows.for_each_init(
            || vec![0; len2],
            |random, (row, out)| {
                self.row(words, row, random);
                for (x, &word) in out.iter_mut().zip(&*random) {
                    if word >= threshold {
                        *x = keep;
                    }
                }
            },
        );
        factors
    }

    /// The random words of a row of the part; rows are counted through samples, d0 and d1.
    #[inline(always)]
    pub(crate) fn row(&self, words: Philox, row: usize, random: &mut [u32]) {
        let [len0, len1, _] = self.len;
        let sample = self.samples[row / (len0 * len1)];
        let d0 = (self.start[0] + row / len1 % len0) as u64;
        let d1 = (self.start[1] + row % len1) as u32;
        let site = sample * self.global as u64 + d0;
        words.row(site, d1, self.start[2] as u32, random);
    }
}
