//! Learning rate as a function of the step.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine over all remaining steps.
    Cosine,
    /// A straight line over all remaining steps.
    Linear,
    /// Warm-up, stable, decay: constant, then a straight line over the last fifth (arXiv 2404.06395).
    Wsd,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LearningRate {
    /// Highest rate, after warm-up.
    pub peak: f64,
    /// Rate at the end.
    pub minimum: f64,
    /// Steps of linear warm-up from zero.
    pub warmup: u64,
    /// All steps, warm-up included.
    pub total: u64,
    /// Shape of the fall.
    pub decay: Decay,
}

impl LearningRate {
    /// Rate of step `step`, from 1.
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let start = match self.decay {
            Decay::Wsd => self.total - self.total / 5,
            _ => self.warmup,
        };
        if step <= start {
            return self.peak;
        }
        let left = self.total.saturating_sub(start).max(1);
        let progress = ((step - start) as f64 / left as f64).min(1.0);
        let height = match self.decay {
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Linear | Decay::Wsd => 1.0 - progress,
        };
        self.minimum + (self.peak - self.minimum) * height
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schedule_warms_up_and_ends_at_its_minimum() {
        for decay in [Decay::Cosine, Decay::Linear, Decay::Wsd] {
            let rate = LearningRate {
                peak: 1.0,
                minimum: 0.1,
                warmup: 10,
                total: 100,
                decay,
            };
            assert!((rate.at(5) - 0.5).abs() < 1e-12);
            assert!((rate.at(10) - 1.0).abs() < 1e-12);
            assert!((rate.at(100) - 0.1).abs() < 1e-12);
            let middle = match decay {
                Decay::Wsd => 1.0,
                _ => 0.55,
            };
            assert!((rate.at(55) - middle).abs() < 1e-12, "{decay:?}");
        }
    }
}
