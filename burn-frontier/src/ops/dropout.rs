//! Dropout whose mask is a function of (seed, step, name, global index), so that it is the same in every layout, when a layer
//! is recomputed, and in a kernel on a GPU.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

use super::backends;
use super::gradient::with_gradient;
use super::shape::{expect, expect_type};
use crate::error::Result;
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
                let sample = self.samples[row / (len0 * len1)];
                let d0 = (self.start[0] + row / len1 % len0) as u64;
                let d1 = (self.start[1] + row % len1) as u32;
                let site = sample * self.global as u64 + d0;
                words.row(site, d1, self.start[2] as u32, random);
                for (x, &word) in out.iter_mut().zip(&*random) {
                    if word >= threshold {
                        *x = keep;
                    }
                }
            },
        );
        factors
    }
}

/// Drops elements of `x` `[batch, seq, hidden]`; `site` describes it as `[sample, 1, seq, hidden]`.
///
/// A GPU computes what is dropped where it is needed; elsewhere the host writes a mask.
///
/// # Errors
/// A site of another shape than x.
pub fn dropout(x: Tensor<3>, site: Option<&Dropout>) -> Result<Tensor<3>> {
    check_site("dropout", &x, None, site)?;
    dropped(x, site)
}

/// Fails unless residual and site are of x.
pub(super) fn check_site(
    operation: &str,
    x: &Tensor<3>,
    residual: Option<&Tensor<3>>,
    site: Option<&Dropout>,
) -> Result<()> {
    let [batch, seq, hidden] = x.dims();
    if let Some(residual) = residual {
        expect(
            operation,
            "the residual",
            residual.dims(),
            x.dims(),
            "of x's shape",
        )?;
        expect_type(operation, "the residual", residual, x.dtype())?;
    }
    let Some(site) = site else { return Ok(()) };
    let axes = "[samples, 1, seq, hidden] of x [batch, seq, hidden]";
    let [len0, len1, len2] = site.len;
    let found = [site.samples.len(), len0, len1, len2];
    expect(
        operation,
        "the dropout's site",
        found,
        [batch, 1, seq, hidden],
        axes,
    )
}

/// [`dropout`] of a site that is of x's shape.
fn dropped(x: Tensor<3>, site: Option<&Dropout>) -> Result<Tensor<3>> {
    let Some(site) = site else { return Ok(x) };
    let x0 = x.clone().without_autodiff();
    let Some(y) = backends::dropout(&x0, None, site) else {
        super::kernels::check()?;
        let mask = flat_mask(&x0, site);
        return Ok(x * mask);
    };
    let site = site.clone();
    Ok(with_gradient([x.into_dispatch()], y, move |g| {
        [Some(gradient(g, &site).into_dispatch())]
    }))
}

/// `residual + dropout(x)`, as [`dropout`].
///
/// # Errors
/// A residual or a site of another shape than x.
pub fn add_dropout(x: Tensor<3>, residual: Tensor<3>, site: Option<&Dropout>) -> Result<Tensor<3>> {
    check_site("add_dropout", &x, Some(&residual), site)?;
    let plain = [&x, &residual].map(|x| x.clone().without_autodiff());
    let fused = site.and_then(|site| {
        let sum = backends::dropout(&plain[0], Some(&plain[1]), site)?;
        Some((sum, site.clone()))
    });
    let Some((sum, site)) = fused else {
        return Ok(residual + dropped(x, site)?);
    };
    Ok(with_gradient(
        [x.into_dispatch(), residual.into_dispatch()],
        sum,
        move |g| [gradient(g.clone(), &site), g].map(|g| Some(g.into_dispatch())),
    ))
}

/// The gradient of x from that of what is left of it.
pub(super) fn gradient(g: Tensor<3>, site: &Dropout) -> Tensor<3> {
    backends::dropout(&g, None, site).unwrap_or_else(|| {
        let mask = flat_mask(&g, site);
        g * mask
    })
}

/// The mask of x `[batch, seq, hidden]`, which is without autodiff.
fn flat_mask(x: &Tensor<3>, site: &Dropout) -> Tensor<3> {
    site.mask(&x.device(), x.dtype()).reshape(x.shape())
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
            global: 4,
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

    #[test]
    #[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
    fn a_kernel_has_the_mask_of_the_host() {
        use frontier_kernels::random::{keeps, threshold};
        let site = site([1, 2, 3], [2, 3, 5], &[4, 1 << 40]);
        assert_eq!(site.threshold(), threshold(site.probability));
        let mask = site.mask(&Device::flex(), DType::F32).into_data();
        let mut mask = mask.iter::<f32>();
        for sample in [4, 1 << 40] {
            for (d0, row) in [(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4)] {
                for column in 3..8 {
                    let kept = keeps(
                        site.words().key,
                        4 * sample + d0,
                        row,
                        column,
                        site.threshold(),
                    );
                    assert_eq!(mask.next().map(|x| x > 0.0), Some(kept));
                }
            }
        }
    }
}
