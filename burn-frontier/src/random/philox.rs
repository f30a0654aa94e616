//! Philox4x32-10 (Salmon et al., SC 2011): the generator of dropout, which the kernels of frontier-kernels compute as well.

use super::fnv1a;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// The golden ratio and sqrt(3) - 1, as fractions of 2^32.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Random words as a function of a counter, one such function for each (seed, step, name).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    /// What tells the functions apart.
    pub key: [u32; 2],
}

impl Philox {
    /// The function of `name` at `step` under `seed`.
    pub fn new(seed: u64, step: u64, name: &str) -> Self {
        // Every part is mixed, so that neighbouring seeds and steps have keys that are far apart.
        let key = [step, fnv1a(0xcbf2_9ce4_8422_2325, name)]
            .into_iter()
            .fold(mix(seed), |key, part| mix(key ^ part));
        Self {
            key: [key as u32, (key >> 32) as u32],
        }
    }

    /// The four words at `counter`.
    pub fn block(self, counter: [u32; 4]) -> [u32; 4] {
        self.blocks(counter.map(|word| [word])).map(|[word]| word)
    }

    /// The four words at several counters, side by side.
    #[inline(always)]
    fn blocks<const N: usize>(self, counters: [[u32; N]; 4]) -> [[u32; N]; 4] {
        let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counters, self.key);
        for _ in 0..ROUNDS {
            for i in 0..N {
                let product0 = u64::from(MULTIPLIERS[0]) * u64::from(c0[i]);
                let product1 = u64::from(MULTIPLIERS[1]) * u64::from(c2[i]);
                (c0[i], c1[i], c2[i], c3[i]) = (
                    (product1 >> 32) as u32 ^ c1[i] ^ k0,
                    product1 as u32,
                    (product0 >> 32) as u32 ^ c3[i] ^ k1,
                    product0 as u32,
                );
            }
            k0 = k0.wrapping_add(WEYL[0]);
            k1 = k1.wrapping_add(WEYL[1]);
        }
        [c0, c1, c2, c3]
    }

    /// Words `start..start + out.len()` of row `row` of site `site`: word `d` is word `d % 4` of the block at
    /// `[d / 4, row, site, site >> 32]`.
    #[inline(always)]
    pub fn row(self, site: u64, row: u32, start: u32, out: &mut [u32]) {
        /// Blocks that a CPU computes at once.
        const N: usize = 16;
        let site = [site as u32, (site >> 32) as u32];
        let offset = (start % 4) as usize;
        let (head, rest) = out.split_at_mut(((4 - offset) % 4).min(out.len()));
        let block = self.block([start / 4, row, site[0], site[1]]);
        head.copy_from_slice(&block[offset..][..head.len()]);
        let mut first = start.div_ceil(4);
        for out in rest.chunks_mut(4 * N) {
            let at = std::array::from_fn(|i| first.wrapping_add(i as u32));
            let words = self.blocks([at, [row; N], [site[0]; N], [site[1]; N]]);
            for (i, out) in out.chunks_mut(4).enumerate() {
                for (out, words) in out.iter_mut().zip(&words) {
                    *out = words[i];
                }
            }
            first = first.wrapping_add(N as u32);
        }
    }
}

/// The finaliser of SplitMix64 (Steele et al., OOPSLA 2014) behind its increment.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers of the Random123 library, philox4x32 with 10 rounds.
        let block = |counter, key| Philox { key }.block(counter);
        assert_eq!(
            block([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            block([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn a_word_depends_on_its_place_alone() {
        let philox = Philox::new(1, 2, "site");
        let mut all = [0; 300];
        philox.row(1 << 33, 5, 0, &mut all);
        for (d, &word) in all.iter().enumerate() {
            assert_eq!(word, philox.block([d as u32 / 4, 5, 0, 2])[d % 4]);
        }
        for (start, len) in [(0, 1), (3, 9), (7, 33), (5, 2), (38, 200), (41, 259)] {
            let mut part = vec![0; len];
            philox.row(1 << 33, 5, start, &mut part);
            assert_eq!(part, all[start as usize..][..len]);
        }
    }

    #[test]
    fn seed_step_and_name_each_give_another_function() {
        let base = Philox::new(1, 1, "a");
        for other in [
            Philox::new(2, 1, "a"),
            Philox::new(1, 2, "a"),
            Philox::new(1, 1, "b"),
            Philox::new(0, 0, "a"),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    #[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
    fn the_kernels_have_the_same_function() {
        let philox = Philox::new(3, 4, "site");
        for i in 0..1000u32 {
            let counter = [i, i.wrapping_mul(2_654_435_761), !i, i / 3];
            let theirs = frontier_kernels::random::philox(counter, philox.key);
            assert_eq!(philox.block(counter), theirs);
        }
    }
}
