//! Random numbers that are a function of what they are for: (seed, step, name, index). So no layout, order of execution
//! or restart can change them. ChaCha8 in counter mode, addressed by word; for dropout [`Philox`], which a GPU computes too.
//! [`Draws`] is what a layer draws from; [`initialize`] tames Burn's own generator.

mod draws;
mod generator;
mod initialize;
mod philox;

pub use draws::Draws;
pub use generator::GeneratorWatch;
pub use initialize::{check_replicas, initialize, initialize_as};
pub use philox::Philox;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The endless sequence of random words that belongs to one (seed, step, name).
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of `name` at `step` under `seed`.
    pub fn new(seed: u64, step: u64, name: &str) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&step.to_le_bytes());
        key[16..24].copy_from_slice(&fnv1a(0xcbf2_9ce4_8422_2325, name).to_le_bytes());
        key[24..].copy_from_slice(&fnv1a(0x6c62_272e_07bb_0142, name).to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Numbers `start..start + out.len()` of the stream, uniform in [0, 1).
    pub fn uniform(&mut self, start: u64, out: &mut [f32]) {
        self.0.set_word_pos(u128::from(start));
        for x in out {
            *x = (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32;
        }
    }

    /// Numbers `start..start + out.len()` of the stream, standard normal (Box-Muller, two words a number).
    pub fn normal(&mut self, start: u64, out: &mut [f64]) {
        self.0.set_word_pos(2 * u128::from(start));
        for x in out {
            let (u, v) = (self.0.next_u32(), self.0.next_u32());
            let radius = (-2.0 * ((f64::from(u) + 1.0) / 2f64.powi(32)).ln()).sqrt();
            *x = radius * (std::f64::consts::TAU * f64::from(v) / 2f64.powi(32)).cos();
        }
    }
}

/// FNV-1a, the usual 64-bit hash of short names.
fn fnv1a(basis: u64, name: &str) -> u64 {
    name.bytes().fold(basis, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_depends_on_its_index_alone() {
        let mut stream = Stream::new(1, 2, "layers.0.dropout");
        let (mut all, mut some) = ([0.0; 100], [0.0; 7]);
        stream.uniform(0, &mut all);
        stream.uniform(41, &mut some);
        assert_eq!(all[41..48], some);
        let (mut all, mut some) = ([0.0; 100], [0.0; 7]);
        stream.normal(0, &mut all);
        stream.normal(93, &mut some);
        assert_eq!(all[93..], some);
    }

    #[test]
    fn seed_step_and_name_each_give_another_stream() {
        let first = |seed, step, name| {
            let mut out = [0.0; 4];
            Stream::new(seed, step, name).uniform(0, &mut out);
            out
        };
        let base = first(1, 1, "a");
        for other in [first(2, 1, "a"), first(1, 2, "a"), first(1, 1, "b")] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut out = vec![0.0; 100_000];
        Stream::new(3, 0, "w").normal(0, &mut out);
        let mean = out.iter().sum::<f64>() / out.len() as f64;
        let variance = out.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / out.len() as f64;
        assert!(
            mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
    }
}
