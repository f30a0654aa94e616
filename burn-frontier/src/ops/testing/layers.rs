//! Layers of drawn numbers, their values and gradients.

use super::{Place, numbers};
use crate::ops::feed_forward::{self, FeedForward};
use crate::ops::gradient::seed;
use crate::ops::gradient_sum::LinearSums;
use crate::ops::linear;
use crate::ops::problem::layers::Activation;

/// Value, and gradients of x, weight and bias. A transposed weight lies in memory as that of a tied head.
pub fn of_layer(
    [rows, input, output]: [usize; 3],
    transposed: bool,
    place: &Place,
) -> [Vec<f64>; 4] {
    let (x, bias) = (place.leaf([2, rows, input], 1), place.leaf([output], 3));
    let (weight, used) = if transposed {
        let weight = place.leaf([output, input], 2);
        (weight.clone(), weight.transpose())
    } else {
        let weight = place.leaf([input, output], 2);
        (weight.clone(), weight)
    };
    let y = linear::linear(x.clone(), used, Some(bias.clone())).unwrap();
    let gradients = seed(y.clone(), place.constant([2, rows, output], 4)).backward();
    [
        numbers(y),
        numbers(x.grad(&gradients).unwrap()),
        numbers(weight.grad(&gradients).unwrap()),
        numbers(bias.grad(&gradients).unwrap()),
    ]
}

/// The sums of the gradients of weight and bias over two micro-batches, and those that are in the graph.
pub fn summed(sums: &LinearSums, transposed: bool, place: &Place) -> [Vec<f64>; 2] {
    let shape = if transposed { [33, 70] } else { [70, 33] };
    let (weight, bias) = (place.leaf(shape, 2), place.leaf([33], 3));
    let mut expected = [vec![0.0; 70 * 33], vec![0.0; 33]];
    for batch in 0..2 {
        let x = place.constant([2, 5, 70], 10 + batch).autodiff();
        let (w, b) = (weight.clone(), bias.clone());
        let y = match transposed {
            true => linear::projection(x, w, sums.weight.as_ref()).unwrap() + b.unsqueeze(),
            false => linear::linear_with_sums(x, w, Some(b), sums).unwrap(),
        };
        let gradients = seed(y, place.constant([2, 5, 33], 20 + batch)).backward();
        let found = [
            weight.grad(&gradients).map(numbers),
            bias.grad(&gradients).map(numbers),
        ];
        for (sum, gradient) in expected.iter_mut().zip(found) {
            let gradient = gradient.into_iter().flatten();
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
    }
    expected
}

/// The parameters of a feed-forward block, leaves of a graph.
pub fn block(
    [_, hidden, ffn]: [usize; 3],
    activation: Activation,
    bias: bool,
    place: &Place,
) -> FeedForward {
    let columns = match activation {
        Activation::Gelu => ffn,
        Activation::Swiglu => 2 * ffn,
    };
    FeedForward {
        up: place.leaf([hidden, columns], 2),
        up_bias: bias.then(|| place.leaf([columns], 3)),
        activation,
        down: place.leaf([ffn, hidden], 4),
        down_bias: bias.then(|| place.leaf([hidden], 5)),
    }
}

/// Value, and gradients of x and all parameters.
pub fn of_block(
    sizes: [usize; 3],
    activation: Activation,
    bias: bool,
    place: &Place,
) -> Vec<Vec<f64>> {
    let [rows, hidden, _] = sizes;
    let layers = block(sizes, activation, bias, place);
    let x = place.leaf([2, rows, hidden], 1);
    let y = feed_forward::feed_forward(x.clone(), layers.clone()).unwrap();
    let gradients = seed(y.clone(), place.constant([2, rows, hidden], 6)).backward();
    let mut all = vec![numbers(y), numbers(x.grad(&gradients).unwrap())];
    all.extend([layers.up, layers.down].map(|w| numbers(w.grad(&gradients).unwrap())));
    let biases = [layers.up_bias, layers.down_bias].into_iter().flatten();
    all.extend(biases.map(|b| numbers(b.grad(&gradients).unwrap())));
    all
}
