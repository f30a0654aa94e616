//! What measured layer passes say beyond the model: an efficiency surface over tokens, width and tensor parallelism.

use serde::{Deserialize, Serialize};

/// Standard deviation, of the logarithm, that passes have around the model. From the A100 sample.
const SIGNAL: f64 = 0.12;
/// The same of two measurements of one pass.
const NOISE: f64 = 0.04;
/// Distance, in factors of two, over which passes are alike.
const LENGTH: f64 = 0.8;

/// The layer passes of one shape, measured against the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observation {
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Tensor-parallel ranks.
    pub tp: usize,
    /// Measured time over modelled time.
    pub ratio: f64,
    /// Runs that it is the mean of.
    pub runs: usize,
}

/// A Gaussian process over the logarithms of tokens, hidden and tp, with mean zero: near a measured shape its factor is
/// what was measured there, far from all it is 1.
///
/// Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, section 2.2.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Observation>", into = "Vec<Observation>")]
pub struct Correction {
    observations: Vec<Observation>,
    weights: Vec<f64>,
}

impl From<Vec<Observation>> for Correction {
    fn from(observations: Vec<Observation>) -> Self {
        let mut correction = Self {
            observations,
            weights: Vec::new(),
        };
        correction.prepare();
        correction
    }
}

impl From<Correction> for Vec<Observation> {
    fn from(correction: Correction) -> Self {
        correction.observations
    }
}

type Point = [f64; 3];

fn point(tokens: usize, hidden: usize, tp: usize) -> Point {
    [tokens, hidden, tp].map(|n| (n.max(1) as f64).log2() / LENGTH)
}

fn covariance(a: Point, b: Point) -> f64 {
    let distance: f64 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum();
    SIGNAL * SIGNAL * (-0.5 * distance).exp()
}

impl Correction {
    /// The measured shapes.
    pub fn observations(&self) -> &[Observation] {
        &self.observations
    }

    /// Solves for the weights; observations that are no positive number are left out.
    pub(super) fn prepare(&mut self) {
        self.observations
            .retain(|o| o.ratio.is_finite() && o.ratio > 0.0 && o.runs > 0);
        let points: Vec<_> = self
            .observations
            .iter()
            .map(|o| point(o.tokens, o.hidden, o.tp))
            .collect();
        let rows = points.iter().enumerate().map(|(i, &a)| {
            let noise = NOISE * NOISE / self.observations[i].runs as f64;
            let mut row: Vec<_> = points.iter().map(|&b| covariance(a, b)).collect();
            row[i] += noise;
            row
        });
        let ratios = self.observations.iter().map(|o| o.ratio.ln()).collect();
        self.weights = super::super::fit::solve(rows.collect(), ratios);
    }

    /// This correction with one more measured shape, in place of what was known of it.
    #[must_use]
    pub fn with(&self, observation: Observation) -> Self {
        let shape = |o: &Observation| (o.tokens, o.hidden, o.tp);
        let others = self
            .observations
            .iter()
            .filter(|o| shape(o) != shape(&observation));
        Self::from(others.copied().chain([observation]).collect::<Vec<_>>())
    }

    /// The measured ratio of a shape; 1 if it was not measured.
    pub fn observed(&self, tokens: usize, hidden: usize, tp: usize) -> f64 {
        let same = |o: &&Observation| (o.tokens, o.hidden, o.tp) == (tokens, hidden, tp);
        self.observations.iter().find(same).map_or(1.0, |o| o.ratio)
    }

    /// Factor on the modelled time of a layer's pass.
    pub fn factor(&self, tokens: usize, hidden: usize, tp: usize) -> f64 {
        let here = point(tokens, hidden, tp);
        let log: f64 = self
            .observations
            .iter()
            .zip(&self.weights)
            .map(|(o, weight)| weight * covariance(here, point(o.tokens, o.hidden, o.tp)))
            .sum();
        log.exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_what_was_measured_and_one_far_away() {
        let seen = |tokens, ratio| Observation {
            tokens,
            hidden: 2048,
            tp: 2,
            ratio,
            runs: 8,
        };
        let correction = Correction::from(vec![seen(1024, 1.2), seen(8192, 0.9)]);
        let at = |tokens, hidden| correction.factor(tokens, hidden, 2);
        assert!((at(1024, 2048) - 1.2).abs() < 0.01);
        assert!((at(8192, 2048) - 0.9).abs() < 0.01);
        let between = at(2048, 2048);
        assert!(between > 1.0 && between < 1.2, "{between}");
        assert!((at(1024, 65536) - 1.0).abs() < 1e-3);
        assert_eq!(Correction::default().factor(1, 1, 1), 1.0);
    }
}
