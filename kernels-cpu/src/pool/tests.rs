//! Against the definitions, window by window.

use super::*;

/// The places of a window in the plane, in order.
fn window(w: &Windows, at: [usize; 3]) -> Vec<usize> {
    let mut places = Vec::new();
    for i in 0..w.kernel[0] {
        for j in 0..w.kernel[1] {
            for k in 0..w.kernel[2] {
                let place = [(0, i), (1, j), (2, k)].map(|(d, tap)| {
                    let place = at[d] * w.stride[d] + tap * w.dilation[d];
                    place
                        .checked_sub(w.padding[d])
                        .filter(|&place| place < w.input[d])
                });
                if let [Some(z), Some(y), Some(x)] = place {
                    places.push((z * w.input[1] + y) * w.input[2] + x);
                }
            }
        }
    }
    places
}

/// Windows with every kind of stride, padding and dilation, of which some begin behind the last whole one.
fn cases() -> Vec<Windows> {
    let mut cases = Vec::new();
    for (kernel, stride, padding, dilation) in [
        ([2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1]),
        ([3, 2, 3], [1, 2, 2], [1, 0, 1], [1, 1, 1]),
        ([2, 3, 2], [3, 1, 3], [0, 2, 1], [2, 1, 3]),
        ([1, 1, 5], [1, 1, 4], [0, 0, 4], [1, 1, 2]),
    ] {
        let input: [usize; 3] = [4, 5, 37];
        let output = std::array::from_fn(|d| {
            let extent = dilation[d] * (kernel[d] - 1) + 1;
            (input[d] + 2 * padding[d] - extent).div_ceil(stride[d]) + 1
        });
        cases.push(Windows {
            input,
            output,
            kernel,
            stride,
            padding,
            dilation,
        });
    }
    cases
}

fn places(size: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [_, height, width] = size;
    let count: usize = size.iter().product();
    (0..count).map(move |i| [i / width / height, i / width % height, i % width])
}

const PLANES: usize = 30;

/// Few different numbers, so that some windows have the greatest one twice, and one that is none.
fn numbers(count: usize, step: usize) -> Vec<f32> {
    let mut all: Vec<f32> = (0..count)
        .map(|i| ((i * step) % 23) as f32 - 11.0)
        .collect();
    all[count / 2] = f32::NAN;
    all
}

/// Bits, in which a NaN is itself.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_greatest_and_its_gradient_are_those_of_each_window() {
    for w in cases() {
        let [input, output]: [usize; 2] = [w.input, w.output].map(|size| size.iter().product());
        let x = numbers(PLANES * input, 7);
        let g: Vec<f32> = (0..PLANES * output).map(|i| (i % 13) as f32).collect();
        let (mut y, mut dx) = (vec![7.0; g.len()], vec![7.0; x.len()]);
        greatest(&w, PLANES, &x, &mut y);
        greatest_gradient(&w, PLANES, [&x, &y, &g], &mut dx);
        let (mut value, mut gradient) = (Vec::new(), vec![0.0; x.len()]);
        for plane in 0..PLANES {
            for at in places(w.output) {
                let mut best: Option<usize> = None;
                for place in window(&w, at) {
                    let place = plane * input + place;
                    let beats = |best: usize| {
                        x[place] > x[best] || (x[place].is_nan() && !x[best].is_nan())
                    };
                    if best.is_none_or(beats) {
                        best = Some(place);
                    }
                }
                if let Some(best) = best {
                    gradient[best] += g[value.len()];
                }
                value.push(best.map_or(f32::NEG_INFINITY, |best| x[best]));
            }
        }
        assert_eq!(bits(&y), bits(&value), "{w:?}");
        assert_eq!(dx, gradient, "{w:?}");
    }
}

#[test]
fn sums_and_their_gradient_are_those_of_each_window() {
    for w in cases() {
        let [input, output]: [usize; 2] = [w.input, w.output].map(|size| size.iter().product());
        let mut x = numbers(PLANES * input, 7);
        x[PLANES * input / 2] = 3.0;
        let g: Vec<f32> = (0..PLANES * output).map(|i| (i % 13) as f32).collect();
        // Powers of two, so that no order of the arithmetic rounds.
        let factors = w
            .output
            .map(|n| (0..n).map(|i| [0.5, 1.0, 2.0][i % 3]).collect::<Vec<f32>>());
        let (mut y, mut dx) = (vec![7.0; g.len()], vec![7.0; x.len()]);
        sums(&w, PLANES, &factors, &x, &mut y);
        sums_gradient(&w, PLANES, &factors, &g, &mut dx);
        let (mut value, mut gradient) = (Vec::new(), vec![0.0; x.len()]);
        for plane in 0..PLANES {
            for at in places(w.output) {
                let factor: f32 = (0..3).map(|d| factors[d][at[d]]).product();
                let window = window(&w, at)
                    .into_iter()
                    .map(|place| plane * input + place);
                let mut sum = 0.0;
                for place in window {
                    sum += x[place];
                    gradient[place] += factor * g[value.len()];
                }
                value.push(factor * sum);
            }
        }
        assert_eq!(y, value, "{w:?}");
        assert_eq!(dx, gradient, "{w:?}");
    }
}
