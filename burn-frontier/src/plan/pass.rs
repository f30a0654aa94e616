//! The seconds of a pass, by what they are spent on.

/// How sharply the slower of host and device decides: 1 would be their sum, infinity their maximum.
const SHARPNESS: i32 = 6;

/// What decides of a device and a host that runs ahead of it, in seconds.
fn slower(device: f64, host: f64) -> f64 {
    let both = device.powi(SHARPNESS) + host.powi(SHARPNESS);
    both.powf(1.0 / f64::from(SHARPNESS))
}

/// Seconds of one pass, by what they are spent on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Pass {
    /// Matrix products with weights.
    pub gemm: f64,
    /// Scores, softmax, weighted values.
    pub attention: f64,
    /// Norms, activations, residuals, transposes, losses: bound by memory.
    pub elementwise: f64,
    /// Starts of kernels on the device.
    pub kernels: f64,
    /// Waiting for the host to launch kernels.
    pub launch: f64,
    /// Tensor-parallel collectives.
    pub tensor: f64,
    /// Context-parallel exchange, as far as attention does not hide it.
    pub context: f64,
}

impl Pass {
    pub fn seconds(&self) -> f64 {
        self.gemm
            + self.attention
            + self.elementwise
            + self.kernels
            + self.launch
            + self.tensor
            + self.context
    }

    pub fn scaled(&self, by: f64) -> Self {
        Self {
            gemm: self.gemm * by,
            attention: self.attention * by,
            elementwise: self.elementwise * by,
            kernels: self.kernels * by,
            launch: self.launch * by,
            tensor: self.tensor * by,
            context: self.context * by,
        }
    }

    pub fn plus(&self, other: &Self) -> Self {
        Self {
            gemm: self.gemm + other.gemm,
            attention: self.attention + other.attention,
            elementwise: self.elementwise + other.elementwise,
            kernels: self.kernels + other.kernels,
            launch: self.launch + other.launch,
            tensor: self.tensor + other.tensor,
            context: self.context + other.context,
        }
    }

    /// The pass when the host needs `seconds` to launch it: it runs ahead of the device, so the slower decides.
    pub fn launched_in(mut self, seconds: f64) -> Self {
        let device = self.seconds();
        self.launch = slower(device, seconds) - device;
        self
    }

    /// Seconds by which the pass, which the host needs `host` seconds to launch, is shorter without a part of it: `device`
    /// seconds and this `share` of the launches.
    pub fn part(&self, host: f64, device: f64, share: f64) -> f64 {
        let all = self.seconds();
        slower(all, host) - slower((all - device).max(0.0), host * (1.0 - share))
    }

    /// The pass scaled by what was measured, but never faster than `least` seconds.
    pub fn corrected(self, factor: f64, least: f64) -> Self {
        let now = self.seconds();
        if now <= 0.0 {
            return self;
        }
        self.scaled(factor.max(least / now))
    }
}

/// The passes of one micro-batch through one layer or end of the model.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Passes {
    pub forward: Pass,
    /// Without what is computed again.
    pub backward: Pass,
    /// Seconds of the backward pass that give gradients of weights.
    pub weight: f64,
    /// What the backward pass computes again.
    pub recompute: Pass,
}

impl Passes {
    pub fn scaled(&self, by: f64) -> Self {
        Self {
            forward: self.forward.scaled(by),
            backward: self.backward.scaled(by),
            weight: self.weight * by,
            recompute: self.recompute.scaled(by),
        }
    }

    pub fn plus(&self, other: &Self) -> Self {
        Self {
            forward: self.forward.plus(&other.forward),
            backward: self.backward.plus(&other.backward),
            weight: self.weight + other.weight,
            recompute: self.recompute.plus(&other.recompute),
        }
    }
}
