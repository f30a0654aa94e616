//! Layer norm and RMS norm by frontier-kernels, with the dropout and the residual in front of them.

use burn::tensor::{DType, Tensor};
use frontier_kernels::dropout::Dropout as Dropped;
use frontier_kernels::norm::launch::{self, Backward, Forward};
use frontier_kernels::norm::{Kind, Plan, Problem};

use super::dropout::Site;
use super::{Buffer, accepted, taken};
use crate::ops::backends::{AddNorm, NormBackward, NormGradients};
use crate::ops::problem::dropout::Dropout;
use crate::ops::problem::layers::NormParameters;

/// The norm of x `[batch, seq, hidden]`.
pub(super) fn norm(
    x: &Tensor<3>,
    parameters: &NormParameters,
) -> Option<(Tensor<3>, NormBackward)> {
    let saved = Saved::new("norm", Buffer::of(x)?, x.dims(), parameters, [false, false])?;
    let y = saved.forward(&saved.input, None, None, parameters)?;
    taken("norm");
    Some((
        y.tensor(),
        Box::new(move |g| Some(saved.backward(g, None)?.1)),
    ))
}

/// `sum = dropout(x) + residual` and its norm, of x and residual `[batch, seq, hidden]`.
pub(super) fn add_norm(
    [x, residual]: [&Tensor<3>; 2],
    site: Option<&Dropout>,
    parameters: &NormParameters,
) -> Option<AddNorm> {
    let dims = x.dims();
    let (x, residual) = (Buffer::of(x)?, Buffer::of(residual)?);
    let sum = x.beside(dims, x.dtype());
    let site = match site {
        Some(site) => Some(Site::new("add_norm", site, &x, dims)?),
        None => None,
    };
    let mut saved = Saved::new(
        "add_norm",
        sum.clone(),
        dims,
        parameters,
        [true, site.is_some()],
    )?;
    saved.site = site;
    let y = saved.forward(&x, Some(&residual), Some(&sum), parameters)?;
    taken("add_norm");
    let backward = move |g, d_sum| {
        let gradients = saved.backward(g, d_sum)?;
        taken("add_norm_backward");
        Some(gradients)
    };
    Some(([sum.tensor(), y.tensor()], Box::new(backward)))
}

/// What a norm keeps for its way back.
struct Saved {
    operation: &'static str,
    plan: Plan,
    dims: [usize; 3],
    /// The norm's input: x, or what it was added up to.
    input: Buffer,
    weight: Buffer,
    stats: Buffer,
    site: Option<Site>,
}

impl Saved {
    fn new(
        operation: &'static str,
        input: Buffer,
        dims: [usize; 3],
        parameters: &NormParameters,
        [residual, dropout]: [bool; 2],
    ) -> Option<Self> {
        let [batch, seq, hidden] = dims;
        let kind = match parameters.bias {
            Some(_) => Kind::Layer,
            None => Kind::Rms,
        };
        let problem = Problem {
            kind,
            hidden,
            residual,
            dropout,
        };
        let plan = Plan::choose(input.target(), input.element(operation)?, problem);
        Some(Self {
            operation,
            weight: Buffer::of(&parameters.weight)?,
            stats: input.beside([batch * seq * plan.stats()], DType::F32),
            plan,
            dims,
            input,
            site: None,
        })
    }

    fn rows(&self) -> usize {
        self.dims[0] * self.dims[1]
    }

    fn samples(&self) -> Option<&Buffer> {
        self.site.as_ref().map(|site| &site.samples)
    }

    fn dropped(&self) -> Dropped {
        self.site
            .as_ref()
            .map_or_else(Dropped::default, |site| site.dropped)
    }

    fn forward(
        &self,
        x: &Buffer,
        residual: Option<&Buffer>,
        sum: Option<&Buffer>,
        parameters: &NormParameters,
    ) -> Option<Buffer> {
        let bias = match &parameters.bias {
            Some(bias) => Some(Buffer::of(bias)?),
            None => None,
        };
        let y = x.beside(self.dims, x.dtype());
        let buffers = Forward {
            x: x.argument(),
            residual: residual.map(Buffer::argument),
            samples: self.samples().map(Buffer::argument),
            weight: self.weight.argument(),
            bias: bias.as_ref().map(Buffer::argument),
            y: y.argument(),
            sum: sum.map(Buffer::argument),
            stats: self.stats.argument(),
        };
        let (epsilon, dropped) = (parameters.epsilon as f32, self.dropped());
        let (client, rows) = (x.client(), self.rows());
        let done = launch::forward(client, &self.plan, buffers, rows, epsilon, &dropped);
        accepted(self.operation, done)?;
        Some(y)
    }

    /// The gradients of the residual (without one, that of x) and of the rest.
    fn backward(
        self,
        g: Tensor<3>,
        d_sum: Option<Tensor<3>>,
    ) -> Option<(Tensor<3>, NormGradients)> {
        let (dtype, hidden) = (self.input.dtype(), self.dims[2]);
        let has_bias = self.plan.problem().kind == Kind::Layer;
        let width = hidden * (1 + usize::from(has_bias));
        let dx = self.input.beside(self.dims, dtype);
        // Without dropout it is the gradient of x.
        let d_residual = self
            .site
            .is_some()
            .then(|| self.input.beside(self.dims, dtype));
        let d_parameters = self.input.beside([width], DType::F32);
        let d_sum = match d_sum {
            Some(d_sum) => Some(Buffer::of(&d_sum)?),
            None => None,
        };
        let buffers = Backward {
            dy: Buffer::of(&g)?.argument(),
            s: self.input.argument(),
            stats: self.stats.argument(),
            weight: self.weight.argument(),
            samples: self.samples().map(Buffer::argument),
            d_sum: d_sum.as_ref().map(Buffer::argument),
            dx: dx.argument(),
            d_residual: d_residual.as_ref().map(Buffer::argument),
            d_parameters: d_parameters.argument(),
        };
        let (client, dropped) = (self.input.client(), self.dropped());
        let done = launch::backward(client, &self.plan, buffers, self.rows(), &dropped);
        let operation = match self.operation {
            "add_norm" => "add_norm_backward",
            _ => "norm_backward",
        };
        accepted(operation, done)?;
        let parameters = d_parameters.tensor::<1>().cast(dtype);
        let gradients = NormGradients {
            x: dx.clone().tensor(),
            weight: parameters.clone().narrow(0, 0, hidden),
            bias: has_bias.then(|| parameters.narrow(0, hidden, hidden)),
        };
        Some((d_residual.unwrap_or(dx).tensor(), gradients))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    use crate::ops::gradient::seed;
    use crate::ops::norm::{add_norm as ops_add_norm, layer_norm, rms_norm};
    use crate::ops::testing::{Place, assert_close, gpu, numbers, types};

    fn rms(place: &Place) -> NormParameters {
        NormParameters {
            weight: place.constant([37], 2),
            bias: None,
            epsilon: 1e-5,
        }
    }

    /// Output and gradients of the norm of x `[2, 3, 37]`.
    fn results(layer: bool, place: &Place) -> [Vec<f64>; 4] {
        let x = place.leaf([2, 3, 37], 1);
        let (weight, bias) = (place.leaf([37], 2), place.leaf([37], 3));
        let y = match layer {
            true => layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5).unwrap(),
            false => rms_norm(x.clone(), weight.clone(), 1e-5).unwrap() + bias.clone().unsqueeze(),
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
            let taken = norm(&place.constant([2, 3, 37], 1), &rms(&place)).is_some();
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

    /// The site of a rank that has tokens 4 to 6 of the sequence.
    fn site() -> Dropout {
        Dropout {
            probability: 0.25,
            seed: 5,
            step: 3,
            name: "site".into(),
            samples: vec![7, (1 << 33) + 2],
            global: 1,
            start: [0, 4, 0],
            len: [1, 3, 37],
        }
    }

    /// Sum, norm, and the gradients of x, residual and parameters, where the sum goes on beside its norm or does not.
    fn sum_and_norm(
        layer: bool,
        site: Option<&Dropout>,
        goes_on: bool,
        place: &Place,
    ) -> Vec<Vec<f64>> {
        let [x, residual] = [1, 2].map(|seed| place.leaf([2, 3, 37], seed));
        let (weight, bias) = (place.leaf([37], 3), layer.then(|| place.leaf([37], 4)));
        let (sum, y) = ops_add_norm(
            // What Burn's gradient checkpointing computes again.
            x.clone().tanh(),
            residual.clone(),
            site,
            weight.clone(),
            bias.clone(),
            1e-5,
        )
        .unwrap();
        let mut all = vec![numbers(sum.clone()), numbers(y.clone())];
        let mut loss = seed(y, place.constant([2, 3, 37], 5));
        if goes_on {
            loss = loss + seed(sum, place.constant([2, 3, 37], 6));
        }
        let gradients = loss.backward();
        all.extend([x, residual].map(|x| numbers(x.grad(&gradients).unwrap())));
        let parameters = [Some(weight), bias].into_iter().flatten();
        all.extend(parameters.map(|x| numbers(x.grad(&gradients).unwrap())));
        all
    }

    #[test]
    fn a_residual_sum_and_its_norm_on_a_gpu_are_one_kernel_and_equal_the_composition() {
        let Some(gpu) = gpu() else { return };
        for dtype in types(&gpu) {
            let (place, reference) = (Place::new(&gpu, dtype), Place::reference(dtype));
            let inputs = [1, 2].map(|seed| place.constant([2, 3, 37], seed));
            let taken = add_norm(inputs.each_ref(), Some(&site()), &rms(&place)).is_some();
            assert!(taken, "the kernels refused");
            for (layer, site, goes_on) in [
                (true, Some(&site()), true),
                (false, Some(&site()), false),
                (true, None, false),
                (false, None, true),
            ] {
                let own = sum_and_norm(layer, site, goes_on, &place);
                let again = sum_and_norm(layer, site, goes_on, &place.checkpointed());
                assert_eq!(own, again, "under gradient checkpointing");
                let expected = sum_and_norm(layer, site, goes_on, &reference);
                for (i, (own, expected)) in own.iter().zip(&expected).enumerate() {
                    let what = format!("result {i}, layer norm {layer}, sum used {goes_on}");
                    assert_close(&what, dtype, own, expected);
                }
            }
        }
    }
}
