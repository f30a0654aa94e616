//! Dynamic loss scale for fp16 (arXiv 1710.03740).

use serde::{Deserialize, Serialize};

/// Scales the loss up so that small gradients do not vanish in fp16, and down when they overflow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScaler {
    /// Present factor; 1 and constant unless dynamic.
    pub scale: f64,
    /// Steps skipped because of an overflow.
    pub skipped: u64,
    dynamic: bool,
    good: u64,
}

/// Steps without overflow after which the scale doubles.
const WINDOW: u64 = 1000;

impl LossScaler {
    /// A factor of 1, for fp32 and bf16.
    pub const fn off() -> Self {
        Self {
            scale: 1.0,
            skipped: 0,
            dynamic: false,
            good: 0,
        }
    }

    /// Dynamic, from 2^16.
    pub const fn dynamic() -> Self {
        Self {
            scale: 65536.0,
            skipped: 0,
            dynamic: true,
            good: 0,
        }
    }

    /// Takes note of a step's gradient norm. Gives whether the step counts; `None` if the gradients are not finite and
    /// no scale can help.
    pub fn update(&mut self, norm: f64) -> Option<bool> {
        if norm.is_finite() {
            self.good += 1;
            if self.dynamic && self.good.is_multiple_of(WINDOW) {
                self.scale *= 2.0;
            }
            return Some(true);
        }
        if !self.dynamic || self.scale <= 1.0 {
            return None;
        }
        (self.good, self.skipped, self.scale) = (0, self.skipped + 1, self.scale / 2.0);
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_halves_the_scale_and_skips_the_step() {
        let mut scaler = LossScaler::dynamic();
        assert_eq!(scaler.update(f64::INFINITY), Some(false));
        assert_eq!((scaler.scale, scaler.skipped), (32768.0, 1));
        for _ in 0..WINDOW {
            assert_eq!(scaler.update(1.0), Some(true));
        }
        assert_eq!(scaler.scale, 65536.0);
        assert_eq!(LossScaler::off().update(f64::NAN), None);
    }
}
