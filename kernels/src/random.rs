//! Philox4x32-10 (Salmon et al., SC 2011): random numbers as a function of a counter, the same in a kernel and on the host.
//!
//! Dropout of element `d` of row `row` of site `site` takes word `d % 4` of the block at `[d / 4, row, site, site >> 32]`, so
//! that no layout, tile or device changes it.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// The golden ratio and sqrt(3) - 1, as fractions of 2^32.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// The block of four words at `counter`, on the host.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..ROUNDS {
        let product0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let product1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = (
            (product1 >> 32) as u32 ^ c1 ^ k0,
            product1 as u32,
            (product0 >> 32) as u32 ^ c3 ^ k1,
            product0 as u32,
        );
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// The threshold of dropout: a word below it drops its element, with `probability` in [0, 1).
pub fn threshold(probability: f64) -> u32 {
    (probability * 4_294_967_296.0).round().min(4_294_967_295.0) as u32
}

/// Whether the host keeps element `d` of `row` of `site`.
pub fn keeps(key: [u32; 2], site: u64, row: u32, d: u32, threshold: u32) -> bool {
    let counter = [d / 4, row, site as u32, (site >> 32) as u32];
    philox(counter, key)[(d % 4) as usize] >= threshold
}

/// The block of four words at counter `[c0, c1, c2, c3]` under key `[k0, k1]`, in a kernel.
#[cube]
pub(crate) fn philox_block(
    c0: u32,
    c1: u32,
    c2: u32,
    c3: u32,
    k0: u32,
    k1: u32,
) -> Vector<u32, Const<4>> {
    let (mut a, mut b, mut c, mut d) = (c0, c1, c2, c3);
    let (mut k, mut l) = (k0, k1);
    #[unroll]
    for _ in 0..ROUNDS {
        let high0 = u32::mul_hi(a, MULTIPLIERS[0]);
        let low0 = a * MULTIPLIERS[0];
        let high1 = u32::mul_hi(c, MULTIPLIERS[1]);
        let low1 = c * MULTIPLIERS[1];
        a = high1 ^ b ^ k;
        b = low1;
        c = high0 ^ d ^ l;
        d = low0;
        k += WEYL[0];
        l += WEYL[1];
    }
    let mut words = Vector::<u32, Const<4>>::zero();
    words.insert(0usize, a);
    words.insert(1usize, b);
    words.insert(2usize, c);
    words.insert(3usize, d);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers of the Random123 library, philox4x32 with 10 rounds.
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn the_threshold_drops_its_share() {
        let threshold = threshold(0.3);
        let kept = (0..40_000)
            .filter(|&d| keeps([1, 2], 7, 3, d, threshold))
            .count();
        assert!((27_500..28_500).contains(&kept), "{kept}");
    }
}
