//! The gradients of layers' parameters: tensors of their own, or added to sums where these lie.

use burn::tensor::{DType, Tensor};

use super::product::Ready;
use super::{Buffer, Layer};
use crate::ops::backends::ParameterGradients;
use crate::ops::backends::cube::bridge::is_here;
use crate::ops::backends::cube::refusal::refused;
use crate::ops::backends::cube::taken;
use crate::ops::problem::gradient_sum::{GradientSum, LinearSums};

/// Launches `before`, then the products of the parameters' gradients of `layers`, each with its input and its output's
/// gradient; or none of them. What is refused is computed otherwise, all of it: had one been added to a sum, it would be
/// there twice.
pub(super) fn launch_all<const N: usize>(
    before: impl IntoIterator<Item = Ready>,
    layers: [(&Layer, &Buffer, &Buffer); N],
) -> Option<[ParameterGradients; N]> {
    let places = layers.map(|(layer, ..)| Place::of(layer));
    let products: Option<Vec<Ready>> = places
        .iter()
        .zip(layers)
        .map(|(place, (layer, x, dy))| {
            let Place {
                weight,
                bias,
                begun,
                ..
            } = place.as_ref()?;
            layer.weight_product([x, dy], weight, bias.as_ref(), *begun)
        })
        .collect();
    let launched = products.is_some();
    let products = products.into_iter().flatten();
    if launched {
        before.into_iter().chain(products).for_each(Ready::launch);
    }
    let mut layers = layers.into_iter();
    let gradients = places.map(|place| {
        let (place, (layer, ..)) = (place?, layers.next()?);
        place.close(layer, launched)
    });
    launched.then(|| gradients.map(Option::unwrap_or_default))
}

/// Where the gradients of a layer's parameters go.
struct Place<'a> {
    weight: Buffer,
    bias: Option<Buffer>,
    /// The sums that these are.
    sums: Option<Sums<'a>>,
    /// Whether something lies there already.
    begun: bool,
}

/// Sums of a layer's gradients: of its weight and, if it has one, of its bias.
type Sums<'a> = (&'a GradientSum, Option<&'a GradientSum>);

impl<'a> Place<'a> {
    /// The sums, taken from where they lie, or new ones; new tensors where the layer has no sums.
    fn of(layer: &'a Layer) -> Option<Self> {
        let count = layer.input * layer.output;
        let Some((weight, bias)) = sums(layer) else {
            let [rows, columns] = layer.shape_in_memory();
            let bias = layer.bias.as_ref();
            return Some(Self {
                weight: layer.weight.beside([rows, columns], layer.weight.dtype()),
                bias: bias.map(|_| layer.weight.beside([layer.output], DType::F32)),
                sums: None,
                begun: false,
            });
        };
        let found = [weight.take(), bias.and_then(GradientSum::take)];
        if !found.iter().flatten().all(is_here) {
            put_back((weight, bias), found);
            return refused(layer.backward(), "the sums of gradients lie elsewhere");
        }
        let begun = found.iter().flatten().next().map(Tensor::device);
        let own = |sum: Option<Tensor<1>>, count: usize| match (sum, &begun) {
            (Some(sum), _) => Buffer::take(sum).map(Buffer::own),
            (None, Some(device)) => Buffer::take(Tensor::<1>::zeros([count], (device, DType::F32))),
            (None, None) => Some(layer.weight.beside([count], DType::F32)),
        };
        let [of_weight, of_bias] = found;
        Some(Self {
            weight: own(of_weight, count)?,
            bias: match bias {
                Some(_) => Some(own(of_bias, layer.output)?),
                None => None,
            },
            sums: Some((weight, bias)),
            begun: begun.is_some(),
        })
    }

    /// Puts sums back, new ones only if something was `added`; gives the gradients that are no sums.
    fn close(self, layer: &Layer, added: bool) -> Option<ParameterGradients> {
        let (weight, bias) = (self.weight, self.bias);
        if let Some(sums) = self.sums {
            if added || self.begun {
                put_back(sums, [Some(weight.tensor()), bias.map(Buffer::tensor)]);
            }
            if added {
                taken("gradient_sum");
            }
            return Some((None, None));
        }
        let weight = weight.tensor::<2>();
        let weight = match layer.transposed {
            true => weight.transpose(),
            false => weight,
        };
        let dtype = layer.weight.dtype();
        let bias = bias.map(|bias| bias.tensor::<1>().cast(dtype));
        Some((Some(weight), bias))
    }
}

fn put_back((weight, bias): Sums<'_>, [of_weight, of_bias]: [Option<Tensor<1>>; 2]) {
    for (place, sum) in [(Some(weight), of_weight), (bias, of_bias)] {
        if let Some((place, sum)) = place.zip(sum) {
            place.put(sum);
        }
    }
}

/// The layer's sums, if there is one for each parameter.
fn sums(layer: &Layer) -> Option<Sums<'_>> {
    let LinearSums { weight, bias } = layer.sums.as_ref()?;
    let bias = bias.as_ref().filter(|_| layer.bias.is_some());
    let complete = bias.is_some() == layer.bias.is_some();
    Some((weight.as_ref()?, bias)).filter(|_| complete)
}
