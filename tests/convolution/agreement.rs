//! Value and gradients of a function of x, weight and bias, beside those of another.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::numbers::numbers;

/// x, weight and bias.
pub type Inputs<const D: usize> = (Tensor<D>, Tensor<D>, Option<Tensor<1>>);

/// The shapes of x and weight, and the length of the bias if there is one.
pub type Shapes<const D: usize> = ([usize; D], [usize; D], Option<usize>);

/// Numbers that f32 holds, of any type.
pub fn drawn<const D: usize>(shape: [usize; D], seed: u32, dtype: DType) -> Tensor<D> {
    let values: Vec<f32> = numbers(seed, shape.iter().product())
        .into_iter()
        .map(|x| x as f32)
        .collect();
    let data = TensorData::new(values, shape).convert_dtype(dtype);
    Tensor::from_data(data, (&Device::flex(), dtype))
}

pub fn leaf<const D: usize>(shape: [usize; D], seed: u32, dtype: DType) -> Tensor<D> {
    drawn(shape, seed, dtype).autodiff().require_grad()
}

pub fn to_vec<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.without_autodiff().into_data().iter().collect()
}

/// Value, and gradients of x, weight and bias.
pub fn results<const D: usize>(
    (x, weight, bias): Shapes<D>,
    dtype: DType,
    function: impl Fn(Inputs<D>) -> Tensor<D>,
) -> Vec<Vec<f64>> {
    let (x, weight) = (leaf(x, 1, dtype), leaf(weight, 2, dtype));
    let bias = bias.map(|n| leaf([n], 3, dtype));
    let y = function((x.clone(), weight.clone(), bias.clone()));
    let gradients = (y.clone() * drawn(y.dims(), 4, dtype).autodiff())
        .sum()
        .backward();
    let mut all = vec![to_vec(y)];
    all.extend([x, weight].map(|leaf| to_vec(leaf.grad(&gradients).unwrap())));
    all.extend(bias.map(|leaf| to_vec(leaf.grad(&gradients).unwrap())));
    all
}

/// Asserts that the relative l2 errors are within what a type holds.
pub fn assert_close(what: &str, dtype: DType, found: &[Vec<f64>], expected: &[Vec<f64>]) {
    let limit = match dtype {
        DType::F64 => 1e-12,
        _ => 3e-6,
    };
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    assert_eq!(found.len(), expected.len(), "{what}");
    let names = ["value", "gradient of x", "of weight", "of bias"];
    for (name, (a, b)) in names.iter().zip(found.iter().zip(expected)) {
        assert_eq!(a.len(), b.len(), "{what}: {name}");
        let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
        let error = difference / norm(&mut b.iter().copied()).max(1e-30);
        assert!(
            error <= limit,
            "{what} in {dtype:?}: {name} off by {error:e}"
        );
    }
}

/// Asserts that `ours` in f32 and f64 is what `burns` is in f64.
pub fn agree<const D: usize>(
    what: &str,
    shapes: Shapes<D>,
    ours: impl Fn(Inputs<D>) -> burn_frontier::Result<Tensor<D>>,
    burns: impl Fn(Inputs<D>) -> Tensor<D>,
) {
    let expected = results(shapes, DType::F64, burns);
    for dtype in [DType::F32, DType::F64] {
        let found = results(shapes, dtype, |inputs| {
            ours(inputs).unwrap_or_else(|error| panic!("{what}: {error}"))
        });
        assert_close(what, dtype, &found, &expected);
    }
}
