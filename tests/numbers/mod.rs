//! The number generator of all tests, with which the goldens were drawn too: the linear congruential one of Numerical Recipes.
#![allow(dead_code)] // Every test program uses its own part.

/// Words of 32 bits, of which the high bits are the more random ones.
pub fn words(seed: u32) -> impl Iterator<Item = u32> {
    let next = |s: &u32| Some(s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(seed), next).skip(1)
}

/// Numbers in [-1, 1).
pub fn numbers(seed: u32, count: usize) -> Vec<f64> {
    let number = |word| f64::from(word) / 2f64.powi(31) - 1.0;
    words(seed).take(count).map(number).collect()
}
