//! The definition, in f64.

/// Rotates a head, whose halves are `(a, b)`, by the angles of its position. Negative ones rotate back.
pub fn rotate(head: &[f64], angles: &[f64]) -> Vec<f64> {
    let (a, b) = head.split_at(angles.len());
    let pairs = || a.iter().zip(b).zip(angles);
    let first = pairs().map(|((a, b), t)| a * t.cos() - b * t.sin());
    first
        .chain(pairs().map(|((a, b), t)| b * t.cos() + a * t.sin()))
        .collect()
}

/// The angles of a position: `position * base^(-2 i / head_dim)`.
pub fn angles(position: usize, head_dim: usize, base: f64) -> Vec<f64> {
    let frequency = |i: usize| base.powf(-2.0 * i as f64 / head_dim as f64);
    (0..head_dim / 2)
        .map(|i| position as f64 * frequency(i))
        .collect()
}
