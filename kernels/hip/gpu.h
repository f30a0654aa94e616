// Makes CubeCL's HIP text compile for a GPU with a plain clang: what hipRTC has built in. Mathematical functions are
// those of AMD's device library (ocml.bc), which hipRTC links too.
#pragma once

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(n) __attribute__((amdgpu_flat_work_group_size(n, n)))
#define __align__(n) __attribute__((aligned(n)))
#define DEVICE static inline __device__ __attribute__((always_inline))
#define DEVICE_MEMBER inline __device__ __attribute__((always_inline))

#include "types.h"

// ---- where a lane is

#define warpSize (int(__builtin_amdgcn_wavefrontsize()))

namespace frontier {
#define FRONTIER_INDEX(Name, X, Y, Z) \
    struct Name { \
        __declspec(property(get = get_x)) unsigned x; \
        __declspec(property(get = get_y)) unsigned y; \
        __declspec(property(get = get_z)) unsigned z; \
        DEVICE_MEMBER unsigned get_x() const { return X; } \
        DEVICE_MEMBER unsigned get_y() const { return Y; } \
        DEVICE_MEMBER unsigned get_z() const { return Z; } \
    }
FRONTIER_INDEX(Thread, __builtin_amdgcn_workitem_id_x(), __builtin_amdgcn_workitem_id_y(),
               __builtin_amdgcn_workitem_id_z());
FRONTIER_INDEX(Block, __builtin_amdgcn_workgroup_id_x(), __builtin_amdgcn_workgroup_id_y(),
               __builtin_amdgcn_workgroup_id_z());
FRONTIER_INDEX(Threads, __builtin_amdgcn_workgroup_size_x(), __builtin_amdgcn_workgroup_size_y(),
               __builtin_amdgcn_workgroup_size_z());
FRONTIER_INDEX(Blocks, __builtin_amdgcn_grid_size_x() / __builtin_amdgcn_workgroup_size_x(),
               __builtin_amdgcn_grid_size_y() / __builtin_amdgcn_workgroup_size_y(),
               __builtin_amdgcn_grid_size_z() / __builtin_amdgcn_workgroup_size_z());
#undef FRONTIER_INDEX
} // namespace frontier

static __device__ const frontier::Thread threadIdx{};
static __device__ const frontier::Block blockIdx{};
static __device__ const frontier::Threads blockDim{};
static __device__ const frontier::Blocks gridDim{};

// ---- functions of float and double

#define FRONTIER_FUNCTION(name) \
    extern "C" __device__ float __ocml_##name##_f32(float); \
    extern "C" __device__ double __ocml_##name##_f64(double); \
    DEVICE float name(float x) { return __ocml_##name##_f32(x); } \
    DEVICE double name(double x) { return __ocml_##name##_f64(x); }
FRONTIER_FUNCTION(exp)
FRONTIER_FUNCTION(exp2)
FRONTIER_FUNCTION(expm1)
FRONTIER_FUNCTION(log)
FRONTIER_FUNCTION(log2)
FRONTIER_FUNCTION(sin)
FRONTIER_FUNCTION(cos)
FRONTIER_FUNCTION(tan)
FRONTIER_FUNCTION(sinh)
FRONTIER_FUNCTION(cosh)
FRONTIER_FUNCTION(tanh)
FRONTIER_FUNCTION(asin)
FRONTIER_FUNCTION(acos)
FRONTIER_FUNCTION(atan)
FRONTIER_FUNCTION(asinh)
FRONTIER_FUNCTION(acosh)
FRONTIER_FUNCTION(atanh)
FRONTIER_FUNCTION(sqrt)
FRONTIER_FUNCTION(rsqrt)
FRONTIER_FUNCTION(ceil)
FRONTIER_FUNCTION(floor)
FRONTIER_FUNCTION(trunc)
FRONTIER_FUNCTION(rint)
FRONTIER_FUNCTION(erf)
#undef FRONTIER_FUNCTION

#define FRONTIER_FUNCTION(name) \
    extern "C" __device__ float __ocml_##name##_f32(float, float); \
    extern "C" __device__ double __ocml_##name##_f64(double, double); \
    DEVICE float name(float x, float y) { return __ocml_##name##_f32(x, y); } \
    DEVICE double name(double x, double y) { return __ocml_##name##_f64(x, y); }
FRONTIER_FUNCTION(pow)
FRONTIER_FUNCTION(fmod)
FRONTIER_FUNCTION(atan2)
FRONTIER_FUNCTION(hypot)
#undef FRONTIER_FUNCTION
DEVICE float pow(float x, int y) { return pow(x, float(y)); }
DEVICE float fabs(float x) { return __builtin_fabsf(x); }
DEVICE double fabs(double x) { return __builtin_fabs(x); }
DEVICE float min(float x, float y) { return __builtin_fminf(x, y); }
DEVICE double min(double x, double y) { return __builtin_fmin(x, y); }
DEVICE float max(float x, float y) { return __builtin_fmaxf(x, y); }
DEVICE double max(double x, double y) { return __builtin_fmax(x, y); }
DEVICE float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
DEVICE double fma(double x, double y, double z) { return __builtin_fma(x, y, z); }
template <class T> DEVICE bool isnan(T x) { return __builtin_isnan(x); }
template <class T> DEVICE bool isinf(T x) { return __builtin_isinf(x); }

#include "arithmetic.h"

// ---- barriers and exchange between lanes

DEVICE void __syncthreads() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
DEVICE void __threadfence() { __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "agent"); }
DEVICE void __threadfence_block() { __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "workgroup"); }

namespace frontier {
DEVICE int lane() { return int(__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0))); }

/// `value` of the lane `source`, by the LDS crossbar, 32 bits at a time.
template <class T> DEVICE T shuffle(T value, int source) {
    if constexpr (sizeof(T) == 8) {
        const auto bits = __builtin_bit_cast(unsigned long long, value);
        const unsigned low = shuffle(unsigned(bits), source), high = shuffle(unsigned(bits >> 32), source);
        return __builtin_bit_cast(T, (unsigned long long)high << 32 | low);
    } else if constexpr (sizeof(T) == 4) {
        return __builtin_bit_cast(T, __builtin_amdgcn_ds_bpermute(source << 2, __builtin_bit_cast(int, value)));
    } else {
        static_assert(sizeof(T) == 2, "a shuffle moves 2, 4 or 8 bytes");
        const unsigned bits = __builtin_bit_cast(unsigned short, value);
        return __builtin_bit_cast(T, (unsigned short)shuffle(bits, source));
    }
}
} // namespace frontier

template <class T> DEVICE T __shfl(T value, int source, int width = warpSize) {
    return frontier::shuffle(value, (frontier::lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T> DEVICE T __shfl_xor(T value, int mask, int width = warpSize) {
    const int lane = frontier::lane(), source = lane ^ mask;
    return frontier::shuffle(value, source >= ((lane + width) & ~(width - 1)) ? lane : source);
}
template <class T> DEVICE T __shfl_up(T value, unsigned delta, int width = warpSize) {
    const int lane = frontier::lane(), source = lane - int(delta);
    return frontier::shuffle(value, source < (lane & ~(width - 1)) ? lane : source);
}
template <class T> DEVICE T __shfl_down(T value, unsigned delta, int width = warpSize) {
    const int lane = frontier::lane(), source = lane + int(delta);
    return frontier::shuffle(value, (lane & (width - 1)) + int(delta) >= width ? lane : source);
}
DEVICE unsigned long long __ballot(int predicate) { return __builtin_amdgcn_uicmp(unsigned(predicate), 0u, 33 /* != */); }
DEVICE unsigned long long __activemask() { return __ballot(true); }
DEVICE int __all(int predicate) { return __ballot(!predicate) == 0; }
DEVICE int __any(int predicate) { return __ballot(predicate) != 0; }

// ---- atomics on memory of the device

#define FRONTIER_ATOMIC(name, operation) \
    template <class T, class U> DEVICE T name(T* at, U value) { \
        return operation(at, T(value), __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT); \
    }
FRONTIER_ATOMIC(atomicAdd, __hip_atomic_fetch_add)
FRONTIER_ATOMIC(atomicMin, __hip_atomic_fetch_min)
FRONTIER_ATOMIC(atomicMax, __hip_atomic_fetch_max)
FRONTIER_ATOMIC(atomicAnd, __hip_atomic_fetch_and)
FRONTIER_ATOMIC(atomicOr, __hip_atomic_fetch_or)
FRONTIER_ATOMIC(atomicXor, __hip_atomic_fetch_xor)
FRONTIER_ATOMIC(atomicExch, __hip_atomic_exchange)
#undef FRONTIER_ATOMIC
template <class T> DEVICE T atomicCAS(T* at, T expected, T desired) {
    __hip_atomic_compare_exchange_strong(
        at, &expected, desired, __ATOMIC_RELAXED, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    return expected;
}
/// By the memory's own adder, where there is one; the address must be in global memory.
DEVICE float unsafeAtomicAdd(float* at, float value) {
#if defined(__gfx90a__) || defined(__gfx942__)
    return __builtin_amdgcn_global_atomic_fadd_f32((__attribute__((address_space(1))) float*)at, value);
#else
    return atomicAdd(at, value);
#endif
}

// ---- CubeCL spells the operands of RDNA3's matrix instruction as __bf16; clang 19 as short

#ifdef __gfx1100__
namespace frontier {
typedef short short_x16 __attribute__((ext_vector_type(16)));
typedef float float_x8 __attribute__((ext_vector_type(8)));
template <class T> DEVICE float_x8 wmma_bf16(T a, T b, float_x8 c) {
    return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(
        __builtin_bit_cast(short_x16, a), __builtin_bit_cast(short_x16, b), c);
}
} // namespace frontier
#define __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(a, b, c) frontier::wmma_bf16(a, b, c)
#endif
