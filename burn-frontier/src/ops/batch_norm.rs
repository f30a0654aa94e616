//! The steps of a batch norm (arXiv 1502.03167) of x `[samples, features, places]` without autodiff, which a layer joins with what
//! replicas tell each other. On the CPU in f32 each is one pass over memory.

use burn::tensor::{Tensor, TensorData};

use super::backends;
pub(crate) use super::problem::batch_norm::BatchNorm;

/// Each feature's mean, and the sum of its squared distances from it.
pub(crate) fn moments(x: &Tensor<3>) -> [Vec<f64>; 2] {
    if let Some(moments) = backends::of(&x.device()).batch_norm_moments(x) {
        return moments;
    }
    let [samples, _, places] = x.dims();
    let count = (samples * places).max(1) as f64;
    let mean = sums(x.clone()).div_scalar(count);
    let distance = x.clone() - mean.clone();
    let squares = sums(distance.clone() * distance);
    [mean, squares].map(|x| x.into_data().iter::<f64>().collect())
}

/// The sums `[1, features, 1]` of x.
fn sums(x: Tensor<3>) -> Tensor<3> {
    x.sum_dim(2).sum_dim(0)
}

impl BatchNorm {
    /// The normalised x.
    pub(crate) fn apply(&self, x: &Tensor<3>) -> Tensor<3> {
        if let Some(y) = backends::of(&x.device()).batch_norm(x, self) {
            return y;
        }
        let [weight, bias] = [&self.weight, &self.bias].map(column);
        self.normal(x) * weight + bias
    }

    /// The gradients `[features]` of weight and bias from that of the value.
    pub(crate) fn gradient_sums(&self, x: &Tensor<3>, g: &Tensor<3>) -> [Tensor<1>; 2] {
        if let Some(sums) = backends::of(&x.device()).batch_norm_gradient_sums(x, g, self) {
            return sums;
        }
        let features = x.dims()[1];
        let both = [sums(g.clone() * self.normal(x)), sums(g.clone())];
        both.map(|sum| sum.reshape([features]))
    }

    /// The gradient of x from that of the value, where `means` are those of [`Self::gradient_sums`] over all numbers that mean and
    /// deviation were taken of.
    pub(crate) fn gradient(&self, x: &Tensor<3>, g: Tensor<3>, means: [Tensor<1>; 2]) -> Tensor<3> {
        let device = x.device();
        if let Some(dx) = backends::of(&device).batch_norm_gradient(x, &g, self, &means) {
            return dx;
        }
        let [slope, shift] = means.each_ref().map(column);
        let scale = column(&self.weight) * self.numbers(&self.inverse, x);
        (g - shift - self.normal(x) * slope) * scale
    }

    /// x without mean and deviation.
    fn normal(&self, x: &Tensor<3>) -> Tensor<3> {
        let [mean, inverse] = [&self.mean, &self.inverse].map(|of| self.numbers(of, x));
        (x.clone() - mean) * inverse
    }

    /// A number a feature, for x.
    fn numbers(&self, of: &[f64], x: &Tensor<3>) -> Tensor<3> {
        let data = TensorData::new(of.to_vec(), [1, of.len(), 1]);
        Tensor::from_data(data, (&x.device(), x.dtype()))
    }
}

/// `[1, features, 1]`.
fn column(of: &Tensor<1>) -> Tensor<3> {
    of.clone().reshape([1, of.dims()[0], 1])
}
