//! What the random numbers of one pass are a function of.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Tensor, TensorCreationOptions, TensorData};
use rayon::prelude::*;

use super::Stream;
use crate::error::{Error, Result};

/// The step of numbers that are drawn outside training: no training gets there.
const OUTSIDE: u64 = u64::MAX;

/// What the random numbers of one pass over samples are a function of: seed, step, name, and the samples' positions in the
/// global batch. So they are the same in every layout, in micro-batches of any size, and after a restart.
///
/// A name that draws again in the same pass draws other numbers. A clone begins anew: a pass that is run again with one, to
/// recompute it, draws what it drew before.
///
/// A name belongs to one layer of a model. Two layers of one name differ only where the same rank has both.
#[derive(Debug)]
pub struct Draws {
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser step; `None` outside training, where nothing is dropped and no noise is added.
    pub step: Option<u64>,
    /// Positions of the samples in the global batch.
    pub samples: Vec<u64>,
    /// How often each name has drawn.
    uses: Arc<Mutex<HashMap<String, u64>>>,
}

impl Clone for Draws {
    fn clone(&self) -> Self {
        Self::new(self.seed, self.step, self.samples.clone())
    }
}

impl Draws {
    /// Of a pass over the samples at these positions in the global batch.
    pub fn new(seed: u64, step: Option<u64>, samples: Vec<u64>) -> Self {
        Self {
            seed,
            step,
            samples,
            uses: Arc::default(),
        }
    }

    /// The draws of the same pass for rows at these global numbers in place of its samples: the nodes of a graph, say.
    pub fn of_rows(&self, rows: Vec<u64>) -> Self {
        Self {
            samples: rows,
            uses: self.uses.clone(),
            ..*self
        }
    }

    /// What the next draw of `name` is called: `name`, then `name#1`, `name#2`, and so on.
    pub fn site(&self, name: &str) -> String {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let uses = uses.entry(name.into()).or_default();
        *uses += 1;
        match *uses - 1 {
            0 => name.into(),
            again => format!("{name}#{again}"),
        }
    }

    /// Standard normal numbers of a shape `[samples, ...]`, or `[samples * rows, ...]` with the rows of a sample together. They
    /// are the same on every device, and in every pass outside training.
    ///
    /// # Errors
    /// A first dimension that is not a multiple of the samples.
    pub fn normal<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        options: impl Into<TensorCreationOptions>,
    ) -> Result<Tensor<D>> {
        let values = self.values(name, &shape, Stream::normal)?;
        Ok(Tensor::from_data(TensorData::new(values, shape), options))
    }

    /// Numbers uniform in [0, 1), multiples of 2^-24, of a shape as in [`Draws::normal`].
    ///
    /// # Errors
    /// As of [`Draws::normal`].
    pub fn uniform<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        options: impl Into<TensorCreationOptions>,
    ) -> Result<Tensor<D>> {
        let values = self.values(name, &shape, Stream::uniform)?;
        Ok(Tensor::from_data(TensorData::new(values, shape), options))
    }

    /// Elements a sample of a tensor of this shape.
    ///
    /// # Errors
    /// A first dimension that is not a multiple of the samples.
    pub(crate) fn elements_a_sample(&self, name: &str, shape: &[usize]) -> Result<usize> {
        let (rows, samples) = (shape.first().copied().unwrap_or(1), self.samples.len());
        if samples > 0 && rows.is_multiple_of(samples) {
            return Ok(shape.iter().product::<usize>() / samples);
        }
        Err(Error::config(
            format!("'{name}' draws for a tensor {shape:?} of {samples} samples"),
            "give it the samples, or as many rows of each, along its first dimension; or number its rows by Draws::of_rows",
        ))
    }

    /// The next numbers of `name`: those of a sample stand where it stands in the global batch.
    fn values<T: Copy + Default + Send>(
        &self,
        name: &str,
        shape: &[usize],
        draw: impl Fn(&mut Stream, u64, &mut [T]) + Sync,
    ) -> Result<Vec<T>> {
        let elements = self.elements_a_sample(name, shape)?;
        // Apart from the streams of first values.
        let site = format!("draws/{}", self.site(name));
        let stream = Stream::new(self.seed, self.step.unwrap_or(OUTSIDE), &site);
        let mut values = vec![T::default(); elements * self.samples.len()];
        let samples = values.par_chunks_mut(elements.max(1)).zip(&self.samples);
        samples.for_each_with(stream, |stream, (values, sample)| {
            draw(stream, sample.wrapping_mul(elements as u64), values);
        });
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device};

    fn normal(draws: &Draws, rows: usize) -> Vec<f32> {
        let options = (&Device::flex(), DType::F32);
        let values = draws.normal("z", [rows, 3], options).unwrap().into_data();
        values.try_to_vec().unwrap()
    }

    #[test]
    fn numbers_belong_to_the_samples_whatever_batch_they_are_in() {
        let all = normal(&Draws::new(1, Some(2), vec![0, 1, 2, 3]), 4);
        let two = normal(&Draws::new(1, Some(2), vec![1, 2]), 2);
        assert_eq!(all[3..9], two);
        let rows_of_two = normal(&Draws::new(1, Some(2), vec![1]), 2);
        assert_eq!(rows_of_two.len(), 6);
        let nodes = Draws::new(1, Some(2), vec![7]).of_rows(vec![3, 1]);
        let nodes = normal(&nodes, 2);
        assert_eq!([&all[9..], &all[3..6]].concat(), nodes);
    }

    #[test]
    fn a_name_that_draws_again_draws_other_numbers_and_a_clone_the_same() {
        let draws = Draws::new(1, Some(2), vec![0]);
        let (first, second) = (normal(&draws, 1), normal(&draws, 1));
        assert_ne!(first, second);
        let of_rows = normal(&draws.of_rows(vec![0]), 1);
        assert!(of_rows != first && of_rows != second);
        let again = draws.clone();
        assert_eq!([normal(&again, 1), normal(&again, 1)], [first, second]);
    }

    #[test]
    fn seed_step_and_name_each_give_other_numbers() {
        let base = normal(&Draws::new(1, Some(2), vec![0]), 1);
        for other in [(2, Some(2)), (1, Some(3)), (1, None)] {
            assert_ne!(base, normal(&Draws::new(other.0, other.1, vec![0]), 1));
        }
        let draws = Draws::new(1, Some(2), vec![0]);
        let named = |name| draws.uniform(name, [1, 3], &Device::flex()).unwrap();
        let [a, b] = ["a", "b"].map(|name| named(name).into_data());
        assert_ne!(a, b);
        assert!(a.iter::<f32>().all(|x| (0.0..1.0).contains(&x)));
    }

    #[test]
    fn rows_that_belong_to_no_sample_are_refused() {
        for samples in [vec![], vec![0, 1]] {
            let draws = Draws::new(1, None, samples);
            let error = draws.normal("z", [3, 2], &Device::flex()).unwrap_err();
            assert!(error.to_string().contains("'z'"), "{error}");
        }
    }
}
