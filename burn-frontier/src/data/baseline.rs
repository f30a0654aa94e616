//! The loss to beat: what a model reaches that only knows how frequent each token is.

/// Loss in nats a token of the unigram model fitted on `train` and measured on `evaluated`, both counts by token id.
///
/// The model is `p(t) = (train[t] + 1) / (total + vocabulary)`, so an unseen token has a finite loss. Passing the
/// same counts twice gives the (smoothed) entropy of the corpus. Nothing to evaluate gives 0.
pub fn unigram_loss(train: &[u64], evaluated: &[u64]) -> f64 {
    let vocabulary = train.len().max(evaluated.len()) as f64;
    let total = train.iter().map(|&count| count as f64).sum::<f64>() + vocabulary;
    let mut loss = 0.0;
    let mut tokens = 0.0;
    for (token, &count) in evaluated.iter().enumerate() {
        let seen = train.get(token).copied().unwrap_or(0) as f64 + 1.0;
        loss += count as f64 * (total / seen).ln();
        tokens += count as f64;
    }
    if tokens == 0.0 { 0.0 } else { loss / tokens }
}
