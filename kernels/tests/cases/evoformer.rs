//! Attention with two biases of the Evoformer, arXiv 2310.04610: golden values in float64.

#[path = "../../../tests/numbers/mod.rs"]
mod numbers;

/// The numbers from which the golden values were made.
pub use numbers::numbers;

const GOLDEN: &str = include_str!("../goldens/evoformer_golden.json");

/// `data` of `tensor` in the case `name`; empty if the case has none.
pub fn golden(name: &str, tensor: &str) -> Vec<f64> {
    let (_, rest) = GOLDEN.split_once(&format!("\"name\": \"{name}\"")).unwrap();
    let case = rest.split_once("\"name\"").map_or(rest, |(case, _)| case);
    let Some((_, rest)) = case.split_once(&format!("\"{tensor}\": {{")) else {
        return vec![];
    };
    let (_, data) = rest.split_once("\"data\": [").unwrap();
    let (data, _) = data.split_once(']').unwrap();
    data.split(',').map(|x| x.trim().parse().unwrap()).collect()
}
