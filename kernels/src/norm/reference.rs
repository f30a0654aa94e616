//! The definition, in f64.

use super::Kind;

/// `y` and, per row, mean and 1 / deviation of `norm(s)`; mean is 0 for an RMS norm. `weight` and `bias` are `[hidden]`.
pub fn forward(
    kind: Kind,
    s: &[f64],
    weight: &[f64],
    bias: &[f64],
    epsilon: f64,
) -> (Vec<f64>, Vec<[f64; 2]>) {
    let (mut y, mut stats, n) = (Vec::new(), Vec::new(), weight.len() as f64);
    for row in s.chunks(weight.len()) {
        let mean = if kind == Kind::Layer {
            row.iter().sum::<f64>() / n
        } else {
            0.0
        };
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let rstd = 1.0 / (variance + epsilon).sqrt();
        y.extend(
            row.iter()
                .zip(weight)
                .zip(bias)
                .map(|((x, w), b)| (x - mean) * rstd * w + b),
        );
        stats.push([mean, rstd]);
    }
    (y, stats)
}

/// Gradients of s, weight and bias from that of y.
pub fn backward(kind: Kind, dy: &[f64], s: &[f64], weight: &[f64], epsilon: f64) -> [Vec<f64>; 3] {
    let (hidden, zeros) = (weight.len(), vec![0.0; weight.len()]);
    let (_, stats) = forward(kind, s, weight, &zeros, epsilon);
    let [mut ds, mut dw, mut db] = [Vec::new(), zeros.clone(), zeros];
    for ((dy, s), [mean, rstd]) in dy.chunks(hidden).zip(s.chunks(hidden)).zip(stats) {
        let normal: Vec<f64> = s.iter().map(|x| (x - mean) * rstd).collect();
        let g: Vec<f64> = dy.iter().zip(weight).map(|(d, w)| d * w).collect();
        let along = g.iter().zip(&normal).map(|(g, x)| g * x).sum::<f64>() / hidden as f64;
        let flat = if kind == Kind::Layer {
            g.iter().sum::<f64>() / hidden as f64
        } else {
            0.0
        };
        for i in 0..hidden {
            ds.push((g[i] - flat - normal[i] * along) * rstd);
            dw[i] += dy[i] * normal[i];
            db[i] += dy[i];
        }
    }
    [ds, dw, db]
}
