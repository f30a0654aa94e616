//! Dropout whose mask is a function of (seed, step, name, global index), so that it is the same in every layout, when a layer
//! is recomputed, and in a kernel on a GPU.

use burn::tensor::Tensor;

use super::backends;
use super::gradient::with_gradient;
pub use super::problem::dropout::Dropout;
use super::shape::{expect, expect_type};
use crate::error::Result;

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
    let backend = backends::of(&x0.device());
    let Some(y) = backend.dropout(&x0, None, Some(site)) else {
        backend.refusal()?;
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
    let fused = {
        let [x, residual] = [&x, &residual].map(|x| x.clone().without_autodiff());
        backends::of(&x.device()).dropout(&x, Some(&residual), site)
    };
    let Some(sum) = fused else {
        // Nobody else holds them, so that Burn may add in place.
        return Ok(residual + dropped(x, site)?);
    };
    let site = site.cloned();
    Ok(with_gradient(
        [x.into_dispatch(), residual.into_dispatch()],
        sum,
        move |g| {
            let dx = match &site {
                Some(site) => gradient(g.clone(), site),
                None => g.clone(),
            };
            [dx, g].map(|g| Some(g.into_dispatch()))
        },
    ))
}

/// The gradient of x from that of what is left of it.
pub(super) fn gradient(g: Tensor<3>, site: &Dropout) -> Tensor<3> {
    backends::of(&g.device())
        .dropout(&g, None, Some(site))
        .unwrap_or_else(|| {
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
    use burn::tensor::{DType, Device};

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
