//! Batch norm over the samples that all replicas have at the same time.

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Flag, Module, ModuleDisplay, Param, RunningState};
use burn::nn::Initializer;
use burn::tensor::{DType, Device, Tensor, TensorData, module::batch_norm};

use crate::comm::{Buffer, Group};
use crate::error::{Error, Result};
use crate::ops::batch_norm::{BatchNorm, moments};
use crate::ops::exchange::{Exchange, apply};
use crate::ops::gradient::with_gradient;

/// Configuration of [`SyncBatchNorm`].
#[derive(Config, Debug)]
pub struct SyncBatchNormConfig {
    /// Number of features, one at least.
    pub num_features: usize,
    /// Added to the variance; positive. Default: 1e-5.
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// Share of a batch's statistics in the running ones, in [0, 1]. Default: 0.1.
    #[config(default = 0.1)]
    pub momentum: f64,
}

impl SyncBatchNormConfig {
    /// The layer, for the replicas of `group`: the data-parallel group.
    ///
    /// # Errors
    /// A number outside of what its field says.
    pub fn init(&self, device: &Device, group: &Group) -> Result<SyncBatchNorm> {
        let Self {
            num_features,
            epsilon,
            momentum,
        } = *self;
        let positive = epsilon > 0.0 && epsilon.is_finite();
        if num_features == 0 || !positive || !(0.0..=1.0).contains(&momentum) {
            return Err(Error::config(
                format!(
                    "a batch norm of {num_features} features with epsilon {epsilon} and momentum {momentum}"
                ),
                "use one feature at least, a positive epsilon, and a momentum from 0 to 1",
            ));
        }
        Ok(SyncBatchNorm {
            gamma: Initializer::Ones.init([num_features], device),
            beta: Initializer::Zeros.init([num_features], device),
            training: Param::from_bool(true),
            running_mean: RunningState::new(Tensor::zeros([num_features], device)),
            running_var: RunningState::new(Tensor::ones([num_features], device)),
            momentum,
            epsilon,
            group: group.clone(),
        })
    }
}

/// Batch norm (arXiv 1502.03167) whose statistics in training are those of the samples that all replicas have at the same time:
/// with a micro-batch a step, those of the global batch, however it is shared out.
///
/// As `burn::nn::BatchNorm`, whose fields and records it has. The running statistics follow the common ones, so they are equal
/// on all replicas. Every replica makes its own layer, since clones share running statistics, and goes through it as often.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct SyncBatchNorm {
    /// Scale `[features]`.
    pub gamma: Param<Tensor<1>>,
    /// Shift `[features]`.
    pub beta: Param<Tensor<1>>,
    /// Whether the layer takes part in training: freezing it clears the flag.
    pub training: Param<Flag>,
    /// Running mean `[features]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// Running variance `[features]`: of batches as they are, not as samples of something larger.
    pub running_var: RunningState<Tensor<1>>,
    /// Share of a batch's statistics in the running ones.
    pub momentum: f64,
    /// Added to the variance.
    pub epsilon: f64,
    #[module(skip)]
    group: Group,
}

impl SyncBatchNorm {
    /// The normalised x `[samples, features, ...]`; as in Burn, by the running statistics if neither x nor the parameters
    /// are on an autodiff device, or the layer is frozen.
    ///
    /// In training it all-gathers `2 * features + 1` numbers in f64 over the replicas, and all-reduces `2 * features` in the
    /// backward pass. The gradients of scale and shift are this replica's, as all parameters'.
    ///
    /// # Errors
    /// Another number of features, no samples on any replica, or a failed collective. A collective that fails in the backward
    /// pass is kept by the group, as in [`exchange`](crate::ops::exchange::exchange).
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Result<Tensor<D>> {
        let ([features], shape) = (self.gamma.lazy_shape().dims(), x.dims());
        if shape.get(1) != Some(&features) {
            return Err(Error::config(
                format!("a batch norm of {features} features is given a tensor {shape:?}"),
                "give it [samples, features, ...]",
            ));
        }
        let (gamma, beta) = (self.gamma.val(), self.beta.val());
        // A batch's own tensors are outside autodiff also in training, where the parameters are in it.
        let training = x.is_autodiff() || gamma.is_autodiff();
        if training && self.training.is_enabled() {
            return self.normalise_by_batch(x, gamma, beta);
        }
        let device = x.device();
        let [mean, variance] = [&self.running_mean, &self.running_var]
            .map(|running| running.value_sync().to_device(&device));
        Ok(batch_norm(x, gamma, beta, mean, variance, self.epsilon))
    }

    fn normalise_by_batch<const D: usize>(
        &self,
        x: Tensor<D>,
        gamma: Tensor<1>,
        beta: Tensor<1>,
    ) -> Result<Tensor<D>> {
        let (shape, dtype) = (x.dims(), x.dtype());
        let (samples, features) = (shape[0], shape[1]);
        // The sums are formed in f32 at least.
        let wide = if dtype == DType::F64 {
            dtype
        } else {
            DType::F32
        };
        let plain = x.clone().without_autodiff().cast(wide);
        let places = shape[2..].iter().product();
        let plain: Tensor<3> = plain.reshape([samples, features, places]);
        let group = self.group.clone();
        let batch = Statistics::of(&plain).everyones(&group)?;
        follow(&self.running_mean, &batch.mean, self.momentum);
        follow(&self.running_var, &batch.variance(), self.momentum);

        let epsilon = self.epsilon;
        let deviation = batch.variance().into_iter().map(|v| (v + epsilon).sqrt());
        let [weight, bias] =
            [&gamma, &beta].map(|parameter| parameter.clone().without_autodiff().cast(wide));
        let norm = BatchNorm {
            inverse: deviation.map(|d| 1.0 / d).collect(),
            mean: batch.mean,
            weight,
            bias,
        };
        let y = norm.apply(&plain).cast(dtype);
        let inputs = [
            x.into_dispatch(),
            gamma.into_dispatch(),
            beta.into_dispatch(),
        ];
        let back = move |g: Tensor<D>| {
            let g: Tensor<3> = g.cast(wide).reshape([samples, features, places]);
            let [of_scale, of_shift] = norm.gradient_sums(&plain, &g);
            // Every replica's loss depends on x through mean and variance: here the sums are common.
            let here = Tensor::cat(vec![of_scale.clone(), of_shift.clone()], 0);
            let common = apply(here, &group, Exchange::AllReduce).div_scalar(batch.count);
            let means = [0, features].map(|first| common.clone().narrow(0, first, features));
            let x = norm.gradient(&plain, g, means).reshape(shape);
            [
                x.into_dispatch(),
                of_scale.into_dispatch(),
                of_shift.into_dispatch(),
            ]
            .map(Some)
        };
        Ok(with_gradient(inputs, y.reshape(shape), back))
    }
}

impl ModuleDisplay for SyncBatchNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [features] = self.gamma.lazy_shape().dims();
        content
            .add("num_features", &features)
            .add("momentum", &self.momentum)
            .add("epsilon", &self.epsilon)
            .optional()
    }
}

/// Moves running statistics towards those of a batch. At once: a value that waits is not what a visitor sees.
fn follow(running: &RunningState<Tensor<1>>, batch: &[f64], momentum: f64) {
    let before = running.value_sync();
    let options = (&before.device(), before.dtype());
    let batch = Tensor::from_data(TensorData::new(batch.to_vec(), [batch.len()]), options);
    running.update(before.mul_scalar(1.0 - momentum) + batch.mul_scalar(momentum));
    running.value_sync();
}

/// What is known of numbers that are spread over replicas, for each feature.
struct Statistics {
    /// How many numbers a feature has.
    count: f64,
    /// Their mean.
    mean: Vec<f64>,
    /// The sum of their squared distances from it.
    squares: Vec<f64>,
}

impl Statistics {
    /// Of x `[samples, features, places]`.
    fn of(x: &Tensor<3>) -> Self {
        let [samples, _, places] = x.dims();
        let [mean, squares] = moments(x);
        Self {
            count: (samples * places) as f64,
            mean,
            squares,
        }
    }

    /// Of all replicas' numbers, combined in rank order (Chan et al., 1983), so that they are the same on all.
    fn everyones(self, group: &Group) -> Result<Self> {
        let features = self.mean.len();
        let mine = [vec![self.count], self.mean, self.squares].concat();
        let all = group.all_gather(Buffer::F64(mine))?.into_f64()?;
        let replicas = all.chunks_exact(2 * features + 1).map(|one| Self {
            count: one[0],
            mean: one[1..=features].to_vec(),
            squares: one[features + 1..].to_vec(),
        });
        let all = replicas.reduce(Self::with).filter(|all| all.count > 0.0);
        all.ok_or_else(|| {
            Error::config(
                "a batch norm in training is given no samples on any replica",
                "give a replica one at least",
            )
        })
    }

    fn with(mut self, other: Self) -> Self {
        let count = self.count + other.count;
        let share = if count > 0.0 {
            other.count / count
        } else {
            0.0
        };
        for (feature, mean) in other.mean.iter().enumerate() {
            let distance = mean - self.mean[feature];
            self.mean[feature] += distance * share;
            self.squares[feature] +=
                other.squares[feature] + distance * distance * self.count * share;
        }
        self.count = count;
        self
    }

    fn variance(&self) -> Vec<f64> {
        self.squares.iter().map(|s| s / self.count).collect()
    }
}
