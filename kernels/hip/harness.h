// What a kernel, compiled for the CPU (cpu.h), asks of the harness that runs it (harness.cpp).
#pragma once

// A function at which lanes meet. The compiler must neither copy nor merge calls of it: lanes are matched by the address
// that they called from.
#define FRONTIER_MEETING __attribute__((convergent, nomerge))

namespace frontier {
typedef unsigned long long u64;

struct Index {
    unsigned x, y, z;
};

// Where the calling lane is. These never change within a kernel, so that repeated calls may be merged.
[[gnu::const]] Index thread();
[[gnu::const]] Index block();
[[gnu::const]] Index threads_of_a_block();
[[gnu::const]] Index blocks();
[[gnu::const]] int lane();

// Meetings of all lanes of a workgroup.
FRONTIER_MEETING void workgroup_barrier();

// Meetings of the lanes of a wave that have not returned.
FRONTIER_MEETING void wave_barrier();
/// Bit `i`: the predicate of lane `i`.
FRONTIER_MEETING u64 ballot(bool predicate);
/// `value` of the lane `source`; all bits set if that lane has returned, where the hardware leaves it undefined.
FRONTIER_MEETING u64 shuffle(u64 value, int source);
/// `value` of the first lane.
FRONTIER_MEETING u64 first_lane(u64 value);

/// Orders the memory accesses of blocks and waves for the thread sanitizer, which does not see fences.
void device_fence();

/// The forms of the matrix instructions. Kept in step with `kernels/src/matrix/instruction.rs` by a test.
enum class Form {
    f32_32x32x8f16,
    f32_16x16x16f16,
    f32_32x32x8bf16_1k,
    f32_16x16x16bf16_1k,
    f32_32x32x2f32,
    f32_16x16x4f32,
    f64_16x16x4f64,
    i32_32x32x8i8,
    i32_16x16x16i8,
    i32_32x32x16_i8,
    i32_16x16x32_i8,
    wmma_f32_16x16x16_f16,
    wmma_f32_16x16x16_bf16,
    m16n8k16_f16,
    m16n8k16_bf16,
};
/// D = A B + C, each given by the registers of the calling lane.
FRONTIER_MEETING void multiply(Form form, const void* a, const void* b, const void* c, void* d);

/// Ends the process and says why, and where if a lane runs.
[[noreturn]] void fail(const char* why);
} // namespace frontier

/// The shared memory (LDS) of the block that runs.
extern "C" char frontier_shared[];
