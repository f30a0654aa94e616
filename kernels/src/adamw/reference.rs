//! The definition, in f64.

use super::launch::Step;

/// One step, number `step` from 1, of the parameter p with the moments m and v and the gradient g.
pub fn adamw([p, m, v]: [f64; 3], g: f64, decays: bool, step: i32, numbers: &Step) -> [f64; 3] {
    let Step {
        learning_rate,
        weight_decay,
        beta1,
        beta2,
        epsilon,
    } = *numbers;
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    let (m_hat, v_hat) = (m / (1.0 - beta1.powi(step)), v / (1.0 - beta2.powi(step)));
    let decay = if decays {
        learning_rate * weight_decay
    } else {
        0.0
    };
    [
        p * (1.0 - decay) - learning_rate * m_hat / (v_hat.sqrt() + epsilon),
        m,
        v,
    ]
}
