//! Problems of dropout, and the dropout of other families' problems.

use frontier_kernels::dropout::{Dropout, Plan};
use frontier_kernels::hip::run::bytes;
use frontier_kernels::random;

use super::{assert_close, draw};

/// Numbers of the samples in the global batch; the last one needs its high half.
pub const SAMPLES: [u64; 3] = [7, 2, (3 << 32) + 1];
pub const DROPOUT: Dropout = Dropout {
    key: [11, 12],
    probability: 0.25,
    tokens: 3,
    first: 40,
};
pub const ROWS: usize = SAMPLES.len() * DROPOUT.tokens as usize;

/// What dropout multiplies element `index` of rows of `hidden` by.
pub fn factor(index: usize, hidden: usize) -> f64 {
    let (row, d) = (index / hidden, index % hidden);
    let tokens = DROPOUT.tokens as usize;
    let (site, token) = (SAMPLES[row / tokens], DROPOUT.first + (row % tokens) as u32);
    match random::keeps(DROPOUT.key, site, token, d as u32, DROPOUT.threshold()) {
        true => f64::from(DROPOUT.scale()),
        false => 0.0,
    }
}

/// The numbers of the samples, as kernels take them.
pub fn samples() -> Vec<u8> {
    bytes(&SAMPLES.map(|s| [s as u32, (s >> 32) as u32]).concat())
}

/// What executes the kernel.
pub trait Run {
    /// `dropout(x) + residual`, without the residual where the plan has none.
    fn add(&self, plan: &Plan, x: &[f64], residual: &[f64]) -> Vec<f64>;
}

/// The kernel drops what the definition drops, and scales the rest.
pub fn check(run: &impl Run, plan: &Plan) {
    let (hidden, count) = (plan.hidden(), ROWS * plan.hidden());
    let (x, residual) = (
        draw(plan.element(), count, 1),
        draw(plan.element(), count, 2),
    );
    let y = run.add(plan, &x, &residual);
    let of = |i: usize| x[i] * factor(i, hidden) + if plan.residual() { residual[i] } else { 0.0 };
    let expected: Vec<f64> = (0..count).map(of).collect();
    assert_close(&format!("{plan:?}"), plan.element(), &y, &expected);
}
