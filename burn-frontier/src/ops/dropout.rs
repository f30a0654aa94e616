//! Dropout whose mask is a function of (seed, step, name, global index), so that it is the same in every layout and when a
//! layer is recomputed.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::random::Stream;

/// The mask of one dropout site for a part of a global tensor `[sample, d0, d1, d2]`.
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
    /// Global lengths of d0, d1, d2.
    pub global: [usize; 3],
    /// Where the part starts in d0, d1, d2.
    pub start: [usize; 3],
    /// Lengths of the part in d0, d1, d2.
    pub len: [usize; 3],
}

impl Dropout {
    /// The mask `[samples, len0, len1, len2]`: 0 where dropped, `1 / (1 - probability)` elsewhere.
    pub fn mask(&self, device: &Device, dtype: DType) -> Tensor<4> {
        let [len0, len1, len2] = self.len;
        let mut stream = Stream::new(self.seed, self.step, &self.name);
        let keep = (1.0 / (1.0 - self.probability)) as f32;
        let mut mask = vec![0.0f32; self.samples.len() * len0 * len1 * len2];
        for (row, out) in mask.chunks_mut(len2.max(1)).enumerate() {
            let sample = self.samples[row / (len0 * len1)];
            let d0 = self.start[0] + row / len1 % len0;
            let d1 = self.start[1] + row % len1;
            let [global0, global1, global2] = self.global.map(|n| n as u64);
            let index = ((sample * global0 + d0 as u64) * global1 + d1 as u64) * global2
                + self.start[2] as u64;
            stream.uniform(index, out);
            for x in out {
                *x = if f64::from(*x) < self.probability {
                    0.0
                } else {
                    keep
                };
            }
        }
        let shape = [self.samples.len(), len0, len1, len2];
        Tensor::<4>::from_data(TensorData::new(mask, shape), (device, DType::F32)).cast(dtype)
    }
}

/// Drops elements of `x` `[batch, seq, hidden]`; `site` describes it as `[sample, 1, seq, hidden]`.
pub fn dropout(x: Tensor<3>, site: Option<&Dropout>) -> Tensor<3> {
    match site {
        Some(site) => {
            let mask = site.mask(&x.device().without_autodiff(), x.dtype());
            let shape = x.shape();
            x * mask.reshape(shape)
        }
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(start: [usize; 3], len: [usize; 3], samples: &[u64]) -> Dropout {
        Dropout {
            probability: 0.25,
            seed: 5,
            step: 3,
            name: "site".into(),
            samples: samples.to_vec(),
            global: [4, 6, 8],
            start,
            len,
        }
    }

    #[test]
    fn a_part_has_the_mask_of_the_whole() {
        let device = Device::flex();
        let whole = site([0; 3], [4, 6, 8], &[0, 1, 2]).mask(&device, DType::F32);
        let part = site([2, 3, 0], [2, 3, 8], &[1]).mask(&device, DType::F32);
        let cut = whole.clone().slice([1..2, 2..4, 3..6, 0..8]);
        assert_eq!(cut.into_data(), part.into_data());
        let mean = whole.mean().into_scalar::<f32>();
        assert!((mean - 1.0).abs() < 0.15, "{mean}");
    }
}
