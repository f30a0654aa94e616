//! The gradients of attention in plain f64, one row at a time.

use super::super::problem::Problem;
use super::super::reference::{Inputs, rows};

/// The gradients, each laid out as what it is the gradient of.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// Of Q.
    pub q: Vec<f64>,
    /// Of K.
    pub k: Vec<f64>,
    /// Of V.
    pub v: Vec<f64>,
    /// Of the biases.
    pub bias: [Vec<f64>; 2],
}

/// The gradients of a loss whose gradient of O is `o_gradient`, laid out as O.
pub fn backward(problem: &Problem, inputs: &Inputs, o_gradient: &[f64]) -> Gradients {
    let zeros = |like: &Vec<f64>| vec![0.0; like.len()];
    let mut of = Gradients {
        q: zeros(&inputs.q),
        k: zeros(&inputs.k),
        v: zeros(&inputs.v),
        bias: [zeros(&inputs.bias[0]), zeros(&inputs.bias[1])],
    };
    let (d, scale) = (problem.head_dim as usize, f64::from(problem.scale));
    for row in rows(problem, inputs) {
        let o = &o_gradient[row.o..row.o + d];
        let product = |v: usize| -> f64 { o.iter().zip(&inputs.v[v..]).map(|(o, v)| o * v).sum() };
        let seen = || row.keys.iter().zip(&row.probabilities).zip(&row.kept);
        let delta: f64 = seen()
            .map(|(([_, v], p), kept)| p * kept * product(*v))
            .sum();
        for ((([k, v], p), kept), bias) in seen().zip(&row.bias_at) {
            let ds = p * (kept * product(*v) - delta);
            for c in 0..d {
                of.q[row.q + c] += scale * ds * inputs.k[k + c];
                of.k[k + c] += scale * ds * inputs.q[row.q + c];
                of.v[v + c] += p * kept * o[c];
            }
            for i in (0..2).filter(|&i| problem.bias[i].is_some()) {
                of.bias[i][bias[i]] += ds;
            }
        }
    }
    of
}
