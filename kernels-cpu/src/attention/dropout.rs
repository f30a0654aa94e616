//! What dropout leaves of a tile of probabilities.

use super::problem::Dropout;

/// Counters of the generator that are taken through its rounds at once.
const LANES: usize = 16;

/// Philox4x32-10 (Salmon et al., SC 2011) at the counters `[column, rows, site, site >> 32]`: a word of each of four columns.
#[inline(always)]
fn philox(key: [u32; 2], column: u32, rows: [u32; LANES], site: u64) -> [[u32; LANES]; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    const ROUNDS: usize = 10;
    let [mut c0, mut c1] = [[column; LANES], rows];
    let [mut c2, mut c3] = [[site as u32; LANES], [(site >> 32) as u32; LANES]];
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for i in 0..LANES {
            let product0 = u64::from(MULTIPLIERS[0]) * u64::from(c0[i]);
            let product1 = u64::from(MULTIPLIERS[1]) * u64::from(c2[i]);
            c0[i] = (product1 >> 32) as u32 ^ c1[i] ^ k0;
            c1[i] = product1 as u32;
            c2[i] = (product0 >> 32) as u32 ^ c3[i] ^ k1;
            c3[i] = product0 as u32;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// The factors `[keys, width]` on the probabilities from (entry, head, query, key) on, of a multiple of four keys: 0 where dropped.
#[inline(always)]
pub fn factors(
    site: &Dropout,
    [entry, head, query, key]: [usize; 4],
    width: usize,
    factors: &mut [f32],
) {
    let number = site.samples[entry]
        .wrapping_mul(site.global)
        .wrapping_add((site.start[0] + head) as u64);
    let (first, column) = (site.start[1] + query, site.start[2] + key);
    for (quad, factors) in factors.chunks_exact_mut(4 * width).enumerate() {
        let column = (column / 4 + quad) as u32;
        for lane in (0..width).step_by(LANES) {
            let mut rows = [0; LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = (first + lane + i) as u32;
            }
            let words = philox(site.key, column, rows, number);
            for (words, factors) in words.iter().zip(factors.chunks_exact_mut(width)) {
                let end = width.min(lane + LANES);
                for (factor, &word) in factors[lane..end].iter_mut().zip(words) {
                    *factor = if word < site.threshold {
                        0.0
                    } else {
                        site.keep
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers of the Random123 library, philox4x32 with 10 rounds.
        for (key, word, expected) in [
            (
                [0; 2],
                0,
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 2],
                u32::MAX,
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
        ] {
            let site = u64::from(word) << 32 | u64::from(word);
            let words = philox(key, word, [word; LANES], site);
            assert_eq!(words, expected.map(|word| [word; LANES]));
        }
    }
}
