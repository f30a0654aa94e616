//! Layer norm and RMS norm by frontier-kernels.

use burn::tensor::{DType, Tensor};
use frontier_kernels::norm::launch::{self, Backward, Forward};
use frontier_kernels::norm::{Dropout, Kind, Plan, Problem};

use super::{Buffer, accepted};
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
