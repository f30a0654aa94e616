//! The definition: each product that a convolution adds up.

use super::{Convolution, Problem};

/// Calls `term` with the places in input, kernels and output of every product.
fn for_terms(of: &Convolution, mut term: impl FnMut(usize, usize, usize)) {
    let p = of.problem();
    let [inputs, outputs] = [p.inputs / p.groups, p.outputs / p.groups];
    for n in 0..p.batch {
        for out in 0..p.outputs {
            for channel in 0..inputs {
                let source = n * p.inputs + out / outputs * inputs + channel;
                let kernel = out * inputs + channel;
                for_places(p, of.output(), |x, w, y| {
                    let place = |plane: usize, size: [usize; 3], at: [usize; 3]| {
                        ((plane * size[0] + at[0]) * size[1] + at[1]) * size[2] + at[2]
                    };
                    term(
                        place(source, p.input, x),
                        place(kernel, p.kernel, w),
                        place(n * p.outputs + out, of.output(), y),
                    );
                });
            }
        }
    }
}

/// Calls `term` with each place of an output, each of the kernel, and where they meet in the input.
fn for_places(
    p: &Problem,
    output: [usize; 3],
    mut term: impl FnMut([usize; 3], [usize; 3], [usize; 3]),
) {
    for y in places(output) {
        for w in places(p.kernel) {
            let x = [0, 1, 2].map(|i| {
                let padded = y[i] * p.stride[i] + w[i] * p.dilation[i];
                padded
                    .checked_sub(p.padding[i][0])
                    .filter(|&x| x < p.input[i])
            });
            if let [Some(a), Some(b), Some(c)] = x {
                term([a, b, c], w, y);
            }
        }
    }
}

fn places([depth, height, width]: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..depth * height * width).map(move |i| [i / width / height, i / width % height, i % width])
}

fn with_bias(channels: usize, pixels: usize, batch: usize, bias: Option<&[f32]>) -> Vec<f64> {
    let of = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[i / pixels % channels]));
    (0..batch * channels * pixels).map(of).collect()
}

/// `y = x * weight + bias`.
pub(super) fn forward(
    of: &Convolution,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f64> {
    let p = of.problem();
    let pixels = of.output().iter().product();
    let mut sums = with_bias(p.outputs, pixels, p.batch, bias);
    for_terms(of, |i, w, y| {
        sums[y] += f64::from(x[i]) * f64::from(weight[w]);
    });
    sums
}

/// The gradient of the input, and a bias.
pub(super) fn data_gradient(
    of: &Convolution,
    dy: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f64> {
    let p = of.problem();
    let pixels = p.input.iter().product();
    let mut sums = with_bias(p.inputs, pixels, p.batch, bias);
    for_terms(of, |i, w, y| {
        sums[i] += f64::from(dy[y]) * f64::from(weight[w]);
    });
    sums
}

/// The gradient of the kernels.
pub(super) fn weight_gradient(of: &Convolution, x: &[f32], dy: &[f32]) -> Vec<f64> {
    let p = of.problem();
    let taps: usize = p.kernel.iter().product();
    let mut sums = vec![0.0; p.outputs * (p.inputs / p.groups) * taps];
    for_terms(of, |i, w, y| {
        sums[w] += f64::from(x[i]) * f64::from(dy[y]);
    });
    sums
}
