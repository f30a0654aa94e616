//! Calibrates a machine file with measured runs.
//!
//! Two steps: a few physical constants are fitted to all runs, held near their starting values by a prior; then what is
//! left is put down as an efficiency surface over the shapes that were measured ([`Correction`]).

use std::collections::BTreeMap;

use super::job::Job;
use super::machine::{Correction, Machine, Observation};
use super::model::Planned;
use super::time;
use crate::error::{Error, Result};

/// Parts that the runs are dealt into to report an honest error.
pub const FOLDS: usize = 5;
/// How strongly a constant is held at its starting value, in the logarithm.
const PRIOR: f64 = 0.1;
/// Logarithmic error beyond which a run loses weight: one odd run must not bend the rest.
const ROBUST: f64 = 0.1;
const ITERATIONS: usize = 20;
/// Rounds in which the surface is found.
const SURFACE_ROUNDS: usize = 3;
/// Largest correction, in the logarithm: three standard deviations.
const ODD: f64 = 0.36;

/// A constant that is fitted: how to reach it, and the most it can be.
struct Constant {
    place: fn(&mut Machine) -> &mut f64,
    most: f64,
    /// The furthest that it may move from its starting value, as a factor.
    reach: f64,
}

const CONSTANTS: [Constant; 10] = [
    Constant {
        place: |m| &mut m.device.gemm_ceiling,
        most: 0.85,
        reach: 1.5,
    },
    Constant {
        place: |m| &mut m.device.memory_gbs,
        most: f64::INFINITY,
        reach: 1.15,
    },
    Constant {
        place: |m| &mut m.device.kernel_us,
        most: f64::INFINITY,
        reach: 4.0,
    },
    Constant {
        place: |m| &mut m.device.launch_us,
        most: f64::INFINITY,
        reach: 4.0,
    },
    Constant {
        place: |m| &mut m.software.optimizer_bytes,
        most: f64::INFINITY,
        reach: 2.0,
    },
    Constant {
        place: |m| &mut m.software.message_us,
        most: f64::INFINITY,
        reach: 4.0,
    },
    Constant {
        place: |m| &mut m.links.node.gbs,
        most: f64::INFINITY,
        reach: 2.0,
    },
    Constant {
        place: |m| &mut m.links.network.efficiency,
        most: 1.0,
        reach: 2.0,
    },
    Constant {
        place: |m| &mut m.links.network.message_efficiency,
        most: 1.0,
        reach: 20.0,
    },
    Constant {
        place: |m| &mut m.links.network.us,
        most: f64::INFINITY,
        reach: 4.0,
    },
];

/// A measured run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run<M> {
    /// What ran.
    pub job: Job<M>,
    /// Measured seconds of a step.
    pub seconds: f64,
}

/// Prediction beside measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Predicted seconds of a step.
    pub predicted: f64,
    /// Measured seconds.
    pub measured: f64,
}

impl Prediction {
    /// Relative error.
    pub fn error(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }
}

/// Mean and largest absolute relative error; zero of none.
pub fn errors(predictions: &[Prediction]) -> (f64, f64) {
    let absolute = predictions.iter().map(|p| p.error().abs());
    let mean = absolute.clone().sum::<f64>() / predictions.len().max(1) as f64;
    (mean, absolute.fold(0.0, f64::max))
}

/// Predicts every run.
///
/// # Errors
/// A run that cannot be.
pub fn predict<M: Planned>(machine: &Machine, runs: &[Run<M>]) -> Result<Vec<Prediction>> {
    runs.iter()
        .map(|run| {
            Ok(Prediction {
                predicted: time::step(&run.job, machine)?.seconds(),
                measured: run.seconds,
            })
        })
        .collect()
}

/// A machine calibrated with all runs, and how well machines calibrated with a part of them predict the rest.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// The machine.
    pub machine: Machine,
    /// Every run, predicted by a machine that was calibrated without it; none for fewer than two runs.
    pub held_back: Vec<Prediction>,
}

/// Calibrates `start` with `runs`.
///
/// # Errors
/// No run, or one that cannot be.
pub fn fit<M: Planned>(start: &Machine, runs: &[Run<M>]) -> Result<Fitted> {
    if runs.is_empty() {
        return Err(Error::config(
            "there is no run to calibrate with",
            "give at least one",
        ));
    }
    let mut machine = calibrate(start, runs)?;
    let folds = FOLDS.min(runs.len());
    let mut held_back = Vec::new();
    for fold in (0..folds).filter(|_| folds > 1) {
        let part = |held: bool| -> Vec<Run<M>> {
            let of = runs.iter().enumerate();
            of.filter(|(i, _)| (i % folds == fold) == held)
                .map(|(_, run)| run.clone())
                .collect()
        };
        let without = calibrate(start, &part(false))?;
        held_back.extend(predict(&without, &part(true))?);
    }
    if !held_back.is_empty() {
        machine.uncertainty = errors(&held_back).0;
    }
    Ok(Fitted { machine, held_back })
}

fn calibrate<M: Planned>(start: &Machine, runs: &[Run<M>]) -> Result<Machine> {
    // The surface of the start would hide what its constants lack.
    let mut machine = start.clone();
    machine.correction = Correction::default();
    let constants = least_squares(&machine, runs)?;
    let mut machine = with(&machine, &constants);
    machine.correction = surface(&machine, runs)?;
    Ok(machine)
}

/// `machine` with its constants times the exponentials of `x`.
fn with(machine: &Machine, x: &[f64]) -> Machine {
    let mut changed = machine.clone();
    for (constant, x) in CONSTANTS.iter().zip(x) {
        let value = (constant.place)(&mut changed);
        *value = (*value * x.exp()).min(constant.most.max(*value));
    }
    changed
}

/// Logarithmic errors of all runs.
fn residuals<M: Planned>(machine: &Machine, runs: &[Run<M>]) -> Result<Vec<f64>> {
    let predictions = predict(machine, runs)?;
    Ok(predictions
        .iter()
        .map(|p| (p.predicted / p.measured).ln())
        .collect())
}

/// Sum over the runs of a loss that is quadratic for small errors and linear for large ones, and the prior.
fn objective(residuals: &[f64], x: &[f64]) -> f64 {
    let robust = |r: &f64| 2.0 * ROBUST.powi(2) * ((1.0 + (r / ROBUST).powi(2)).sqrt() - 1.0);
    residuals.iter().map(robust).sum::<f64>() + x.iter().map(|x| (PRIOR * x).powi(2)).sum::<f64>()
}

/// Levenberg-Marquardt with reweighting.
fn least_squares<M: Planned>(machine: &Machine, runs: &[Run<M>]) -> Result<Vec<f64>> {
    let n = CONSTANTS.len();
    let mut x = vec![0.0; n];
    let mut now = residuals(machine, runs)?;
    let mut damping = 1e-2;
    for _ in 0..ITERATIONS {
        let columns = slopes(machine, runs, &x, &now)?;
        let weights: Vec<f64> = now
            .iter()
            .map(|r| 1.0 / (1.0 + (r / ROBUST).powi(2)).sqrt())
            .collect();
        let dot = |a: &[f64], b: &[f64]| -> f64 {
            a.iter()
                .zip(b)
                .zip(&weights)
                .map(|((a, b), w)| a * b * w)
                .sum()
        };
        let mut better = false;
        for _ in 0..8 {
            let mut matrix: Vec<Vec<f64>> = columns
                .iter()
                .map(|a| columns.iter().map(|b| dot(a, b)).collect())
                .collect();
            for (i, row) in matrix.iter_mut().enumerate() {
                row[i] = row[i] * (1.0 + damping) + PRIOR * PRIOR;
            }
            let right = (0..n)
                .map(|i| -dot(&columns[i], &now) - PRIOR * PRIOR * x[i])
                .collect();
            let step = solve(matrix, right);
            let moved = x.iter().zip(&step).zip(&CONSTANTS);
            let tried: Vec<f64> = moved
                .map(|((x, d), constant)| (x + d).clamp(-constant.reach.ln(), constant.reach.ln()))
                .collect();
            let there = residuals(&with(machine, &tried), runs)?;
            if objective(&there, &tried) < objective(&now, &x) {
                (x, now, better) = (tried, there, true);
                damping = (damping / 3.0_f64).max(1e-6);
                break;
            }
            damping *= 4.0;
        }
        if !better {
            break;
        }
    }
    Ok(x)
}

/// How the residuals, which are `now` at `x`, change with each constant.
fn slopes<M: Planned>(
    machine: &Machine,
    runs: &[Run<M>],
    x: &[f64],
    now: &[f64],
) -> Result<Vec<Vec<f64>>> {
    let along = |i: usize| -> Result<Vec<f64>> {
        let mut moved = x.to_vec();
        moved[i] += 1e-3;
        let there = residuals(&with(machine, &moved), runs)?;
        let pairs = there.iter().zip(now);
        Ok(pairs.map(|(a, b)| (a - b) / 1e-3).collect())
    };
    (0..x.len()).map(along).collect()
}

/// What the model leaves over, by shape of the layer's passes. Passes are only a part of a step, so that one round does not
/// remove all of it.
fn surface<M: Planned>(machine: &Machine, runs: &[Run<M>]) -> Result<Correction> {
    let mut machine = machine.clone();
    for _ in 0..SURFACE_ROUNDS {
        machine.correction = refined(&machine, runs)?;
    }
    Ok(machine.correction)
}

fn refined<M: Planned>(machine: &Machine, runs: &[Run<M>]) -> Result<Correction> {
    let mut logs: BTreeMap<(usize, usize, usize), Vec<f64>> = BTreeMap::new();
    let errors = residuals(machine, runs)?;
    for (run, error) in runs.iter().zip(errors) {
        let job = &run.job;
        // Passes of a model without a width are like none other's.
        if let Some(width) = job.model.width() {
            let shape = (job.micro_batch_tokens(), width, job.layout.tp);
            logs.entry(shape).or_default().push(-error);
        }
    }
    let observations: Vec<_> = logs
        .into_iter()
        .map(|((tokens, hidden, tp), logs)| Observation {
            tokens,
            hidden,
            tp,
            ratio: {
                let known = machine.correction.observed(tokens, hidden, tp).ln();
                let left = logs.iter().sum::<f64>() / logs.len() as f64;
                // One odd run says little about its neighbours.
                (known + left).clamp(-ODD, ODD).exp()
            },
            runs: logs.len(),
        })
        .collect();
    Ok(Correction::from(observations))
}

/// Solves `matrix x = right` by elimination with pivots; a direction that the matrix does not see stays zero.
pub(super) fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|&a, &b| matrix[a][i].abs().total_cmp(&matrix[b][i].abs()));
        let pivot = pivot.unwrap_or(i);
        matrix.swap(i, pivot);
        right.swap(i, pivot);
        if matrix[i][i].abs() < 1e-300 {
            continue;
        }
        let (above, below) = matrix.split_at_mut(i + 1);
        let row = &above[i];
        for (j, other) in below.iter_mut().enumerate() {
            let factor = other[i] / row[i];
            for (a, b) in other[i..].iter_mut().zip(&row[i..]) {
                *a -= factor * b;
            }
            right[i + 1 + j] -= factor * right[i];
        }
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| matrix[i][j] * x[j]).sum();
        if matrix[i][i].abs() >= 1e-300 {
            x[i] = (right[i] - known) / matrix[i][i];
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_system_is_solved() {
        let x = solve(
            vec![
                vec![0.0, 2.0, 1.0],
                vec![1.0, 1.0, 0.0],
                vec![3.0, 0.0, 1.0],
            ],
            vec![7.0, 3.0, 6.0],
        );
        for (found, expected) in x.iter().zip([1.0, 2.0, 3.0]) {
            assert!((found - expected).abs() < 1e-12, "{x:?}");
        }
    }
}
