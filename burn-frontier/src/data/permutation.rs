//! A shuffle without state: where element `i` goes is computed, so no rank stores or replays an order.

/// Rounds of the Feistel network. Four make it pseudo-random for a good round function; six leave room for the
/// few bits of a small domain.
const ROUNDS: u64 = 6;

/// A pseudo-random permutation of `0..len`, a pure function of its key.
///
/// A balanced Feistel network (Luby and Rackoff, 1988) over the next power of four, walked along its cycle until
/// the value falls inside `0..len` (Black and Rogaway, 2002). The round function is [`mix`].
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    len: u64,
    key: u64,
    /// Bits of each half: the network permutes `0..4^half_bits`.
    half_bits: u32,
}

impl Permutation {
    /// The permutation of `0..len` named by `key`: (seed, epoch, what is shuffled).
    pub fn new(len: u64, key: [u64; 3]) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self {
            len,
            key: key.into_iter().fold(0, |state, word| mix(state ^ word)),
            half_bits: bits.div_ceil(2).max(1),
        }
    }

    /// Where `index` goes. An index outside `0..len` is its own image.
    pub fn at(&self, index: u64) -> u64 {
        if index >= self.len {
            return index;
        }
        // The cycle through `index` returns to it at the latest, so the walk ends; four steps are expected at most.
        let mut value = self.network(index);
        while value >= self.len {
            value = self.network(value);
        }
        value
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let next = left ^ (mix(self.key ^ mix(right ^ (round << 48))) & mask);
            (left, right) = (right, next);
        }
        (left << self.half_bits) | right
    }
}

/// SplitMix64's step and finaliser (Steele, Lea and Flood, 2014): a bijection of 64 bits that hides its input.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
