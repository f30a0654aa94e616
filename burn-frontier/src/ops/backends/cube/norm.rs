//! Layer norm and RMS norm by frontier-kernels.

use burn::tensor::{DType, Tensor};
use frontier_kernels::norm::launch::{self, Backward, Forward};
use frontier_kernels::norm::{Dropout, Kind, Plan, Problem};

use super::{Buffer, accepted, taken};
use crate::ops::backends::{NormBackward, NormGradients};

/// The layer norm (with a bias) or RMS norm (without) of x `[batch, seq, hidden]`.
pub(crate) fn norm(
    x: &Tensor<3>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
) -> Option<(Tensor<3>, NormBackward)> {
    let [batch, seq, hidden] = x.dims();
    let rows = batch * seq;
    let (x, weight) = (Buffer::of(x)?, Buffer::of(weight)?);
    let bias = match bias {
        Some(bias) => Some(Buffer::of(bias)?),
        None => None,
    };
    let kind = match bias {
        Some(_) => Kind::Layer,
        None => Kind::Rms,
    };
    let (residual, dropout) = (false, false);
    let problem = Problem {
        kind,
        hidden,
        residual,
        dropout,
    };
    let plan = Plan::choose(x.target(), x.element()?, problem);
    let y = x.beside([batch, seq, hidden], x.dtype());
    let stats = x.beside([rows * plan.stats()], DType::F32);
    let buffers = Forward {
        x: x.argument(),
        residual: None,
        samples: None,
        weight: weight.argument(),
        bias: bias.as_ref().map(Buffer::argument),
        y: y.argument(),
        sum: None,
        stats: stats.argument(),
    };
    let site = Dropout::default();
    accepted(launch::forward(
        x.client(),
        &plan,
        buffers,
        rows,
        epsilon as f32,
        &site,
    ))?;
    taken("norm");
    let saved = Saved {
        plan,
        x,
        weight,
        stats,
        rows,
    };
    Some((y.tensor(), Box::new(move |g| saved.backward(g))))
}

struct Saved {
    plan: Plan,
    x: Buffer,
    weight: Buffer,
    stats: Buffer,
    rows: usize,
}

impl Saved {
    fn backward(self, g: Tensor<3>) -> Option<NormGradients> {
        let (dims, dtype) = (g.dims(), self.x.dtype());
        let hidden = dims[2];
        let has_bias = self.plan.problem.kind == Kind::Layer;
        let width = hidden * (1 + usize::from(has_bias));
        let dx = self.x.beside(dims, dtype);
        let parameters = self.x.beside([width], DType::F32);
        let buffers = Backward {
            dy: Buffer::of(&g)?.argument(),
            s: self.x.argument(),
            stats: self.stats.argument(),
            weight: self.weight.argument(),
            samples: None,
            d_sum: None,
            dx: dx.argument(),
            d_residual: None,
            d_parameters: parameters.argument(),
        };
        let site = Dropout::default();
        accepted(launch::backward(
            self.x.client(),
            &self.plan,
            buffers,
            self.rows,
            &site,
        ))?;
        let parameters = parameters.tensor::<1>().cast(dtype);
        Some(NormGradients {
            x: dx.tensor(),
            weight: parameters.clone().narrow(0, 0, hidden),
            bias: has_bias.then(|| parameters.narrow(0, hidden, hidden)),
        })
    }
}

#[cfg(all(test, feature = "wgpu", feature = "flex"))]
mod tests {
    use super::*;

    use crate::ops::backends::cube::testing::{Place, assert_close, gpu, numbers, types};
    use crate::ops::gradient::seed;
    use crate::ops::norm::{layer_norm, rms_norm};

    /// Output and gradients of the norm of x `[2, 3, 37]`.
    fn results(layer: bool, place: &Place) -> [Vec<f64>; 4] {
        let x = place.leaf([2, 3, 37], 1);
        let (weight, bias) = (place.leaf([37], 2), place.leaf([37], 3));
        let y = match layer {
            true => layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5),
            false => rms_norm(x.clone(), weight.clone(), 1e-5) + bias.clone().unsqueeze(),
        };
        let gradients = seed(y.clone(), place.constant([2, 3, 37], 4)).backward();
        [
            numbers(y),
            numbers(x.grad(&gradients).unwrap()),
            numbers(weight.grad(&gradients).unwrap()),
            numbers(bias.grad(&gradients).unwrap()),
        ]
    }

    #[test]
    fn norms_on_a_gpu_are_the_kernels_and_equal_the_composition() {
        let Some(gpu) = gpu() else { return };
        for dtype in types(&gpu) {
            let place = Place::new(&gpu, dtype);
            let (x, weight) = (place.constant([2, 3, 37], 1), place.constant([37], 2));
            let taken = norm(&x, &weight, None, 1e-5).is_some();
            assert!(taken, "the kernels refused");
            for layer in [true, false] {
                let (own, expected) = (
                    results(layer, &place),
                    results(layer, &Place::reference(dtype)),
                );
                for (own, expected) in own.iter().zip(&expected) {
                    assert_close("norm", dtype, own, expected);
                }
            }
        }
    }
}
