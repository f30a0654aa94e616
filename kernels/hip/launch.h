// The file that describes a launch, written by kernels/src/hip/run.rs: a header of 64-bit words, the size of each buffer,
// then the buffers. The buffers go back in the same order.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "harness.h"

namespace frontier {

struct Header {
    uint64_t wave;
    /// Whether f16 and bf16 matrix instructions treat subnormal numbers as zero.
    uint64_t flush;
    /// Blocks, waves and lanes run in ascending order (0), descending order (1), or an order drawn from this seed.
    uint64_t order;
    uint64_t shared_bytes;
    uint64_t blocks[3];
    uint64_t threads[3];
    uint64_t buffers;
};

struct Launch {
    Header header;
    std::vector<uint64_t> sizes;
    std::vector<void*> buffers;

    void read(const char* path) {
        FILE* file = fopen(path, "rb");
        if (!file) fail("cannot open the launch file");
        fill(&header, sizeof header, file);
        sizes.resize(header.buffers);
        fill(sizes.data(), sizes.size() * sizeof(uint64_t), file);
        for (uint64_t size : sizes) {
            void* buffer = nullptr;
            // No byte more than asked for, so that the address sanitizer sees the first one beyond.
            if (posix_memalign(&buffer, ALIGNMENT, size)) fail("no memory for a buffer");
            fill(buffer, size, file);
            buffers.push_back(buffer);
        }
        fclose(file);
    }

    void write(const char* path) const {
        FILE* file = fopen(path, "wb");
        bool written = file;
        for (size_t i = 0; written && i < buffers.size(); ++i)
            written = fwrite(buffers[i], 1, sizes[i], file) == sizes[i];
        if (!written || fclose(file)) fail("cannot write the file of results");
    }

  private:
    /// As a GPU's allocator aligns.
    static constexpr size_t ALIGNMENT = 256;

    static void fill(void* at, size_t bytes, FILE* file) {
        if (fread(at, 1, bytes, file) != bytes) fail("the launch file ends early");
    }
};
} // namespace frontier
