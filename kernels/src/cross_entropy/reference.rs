//! The definition, in f64.

/// Loss of each token and the gradient of their sum weighted by `scale`; both 0 for a token without target.
pub fn cross_entropy(
    logits: &[f64],
    targets: &[Option<usize>],
    scale: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    let columns = logits.len() / targets.len();
    for ((row, target), scale) in logits.chunks(columns).zip(targets).zip(scale) {
        let largest = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
        losses.push(target.map_or(0.0, |target| largest + sum.ln() - row[target]));
        gradient.extend(row.iter().enumerate().map(|(column, x)| match *target {
            Some(target) => {
                ((x - largest).exp() / sum - f64::from(u8::from(column == target))) * scale
            }
            None => 0.0,
        }));
    }
    (losses, gradient)
}
