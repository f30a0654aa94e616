// The order in which blocks, waves and lanes run: a kernel must not depend on it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace frontier {

struct Order {
    std::vector<uint64_t> blocks;
    std::vector<int> waves, lanes;

    Order() = default;
    /// Ascending for seed 0, descending for 1, drawn at random for any other.
    Order(uint64_t seed, size_t block_count, size_t wave_count, size_t lane_count)
        : blocks(block_count), waves(wave_count), lanes(lane_count) {
        std::mt19937_64 random(seed);
        arrange(blocks, seed, random);
        arrange(waves, seed, random);
        arrange(lanes, seed, random);
    }

  private:
    template <class T> static void arrange(std::vector<T>& all, uint64_t seed, std::mt19937_64& random) {
        std::iota(all.begin(), all.end(), T(0));
        if (seed == 1) std::reverse(all.begin(), all.end());
        if (seed > 1) std::shuffle(all.begin(), all.end(), random);
    }
};
} // namespace frontier
