// Makes CubeCL's HIP and CUDA text compile for the CPU, as code that one lane executes. FRONTIER_WAVE is the number of lanes.
#pragma once

#define DEVICE static inline __attribute__((always_inline))
#define DEVICE_MEMBER inline __attribute__((always_inline))
#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict

#include "harness.h"
#include "types.h"

extern "C" int printf(const char*, ...);

namespace frontier {
/// Ends the process if an array of `count` has no element `index`; only under the address sanitizer.
DEVICE void check(size_t index, size_t count) {
#ifdef FRONTIER_CHECKED
    if (index >= count) fail("an index beyond an array");
#else
    (void)index, (void)count;
#endif
}
} // namespace frontier

static constexpr int warpSize = FRONTIER_WAVE;
#define threadIdx (frontier::thread())
#define blockIdx (frontier::block())
#define blockDim (frontier::threads_of_a_block())
#define gridDim (frontier::blocks())

// ---- functions of float and double

#define FRONTIER_FUNCTION(name) \
    DEVICE float name(float x) { return __builtin_##name##f(x); } \
    DEVICE double name(double x) { return __builtin_##name(x); }
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
FRONTIER_FUNCTION(ceil)
FRONTIER_FUNCTION(floor)
FRONTIER_FUNCTION(trunc)
FRONTIER_FUNCTION(rint)
FRONTIER_FUNCTION(erf)
FRONTIER_FUNCTION(fabs)
#undef FRONTIER_FUNCTION
DEVICE float rsqrt(float x) { return 1.0f / sqrt(x); }
DEVICE double rsqrt(double x) { return 1.0 / sqrt(x); }

#define FRONTIER_FUNCTION(name, builtin) \
    DEVICE float name(float x, float y) { return __builtin_##builtin##f(x, y); } \
    DEVICE double name(double x, double y) { return __builtin_##builtin(x, y); }
FRONTIER_FUNCTION(min, fmin)
FRONTIER_FUNCTION(max, fmax)
FRONTIER_FUNCTION(pow, pow)
FRONTIER_FUNCTION(fmod, fmod)
FRONTIER_FUNCTION(atan2, atan2)
FRONTIER_FUNCTION(hypot, hypot)
#undef FRONTIER_FUNCTION
DEVICE float pow(float x, int y) { return __builtin_powf(x, float(y)); }
DEVICE float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
DEVICE double fma(double x, double y, double z) { return __builtin_fma(x, y, z); }
template <class T> DEVICE bool isnan(T x) { return __builtin_isnan(x); }
template <class T> DEVICE bool isinf(T x) { return __builtin_isinf(x); }

#include "arithmetic.h"

// ---- exchange between lanes

DEVICE void __syncthreads() { frontier::workgroup_barrier(); }
DEVICE void __threadfence() { frontier::device_fence(); }
DEVICE void __threadfence_block() { frontier::device_fence(); }

namespace frontier {
template <unsigned BYTES> struct Bits;
template <> struct Bits<1> { typedef unsigned char type; };
template <> struct Bits<2> { typedef unsigned short type; };
template <> struct Bits<4> { typedef unsigned type; };
template <> struct Bits<8> { typedef unsigned long long type; };
template <class T> using BitsOf = typename Bits<sizeof(T)>::type;

template <class T> DEVICE u64 to_bits(T x) { return __builtin_bit_cast(BitsOf<T>, x); }
template <class T> DEVICE T from_bits(u64 x) { return __builtin_bit_cast(T, BitsOf<T>(x)); }
} // namespace frontier

template <class T> DEVICE T __shfl(T value, int source, int width = warpSize) {
    const int first = frontier::lane() & ~(width - 1);
    return frontier::from_bits<T>(frontier::shuffle(frontier::to_bits(value), first | (source & (width - 1))));
}
template <class T> DEVICE T __shfl_xor(T value, int mask, int width = warpSize) {
    const int lane = frontier::lane(), source = lane ^ mask;
    const bool within = (source & ~(width - 1)) == (lane & ~(width - 1));
    return frontier::from_bits<T>(frontier::shuffle(frontier::to_bits(value), within ? source : lane));
}
template <class T> DEVICE T __shfl_up(T value, unsigned delta, int width = warpSize) {
    const int lane = frontier::lane(), at = lane & (width - 1);
    return frontier::from_bits<T>(frontier::shuffle(frontier::to_bits(value), at < int(delta) ? lane : lane - int(delta)));
}
template <class T> DEVICE T __shfl_down(T value, unsigned delta, int width = warpSize) {
    const int lane = frontier::lane(), at = lane & (width - 1);
    return frontier::from_bits<T>(
        frontier::shuffle(frontier::to_bits(value), at + int(delta) < width ? lane + int(delta) : lane));
}
DEVICE unsigned long long __ballot(int predicate) { return frontier::ballot(predicate); }
DEVICE unsigned long long __activemask() { return frontier::ballot(true); }
DEVICE int __all(int predicate) { return frontier::ballot(!predicate) == 0; }
DEVICE int __any(int predicate) { return frontier::ballot(predicate) != 0; }

// ---- atomics

namespace frontier {
/// Replaces `*at` by `next(*at)`, and returns what it was.
template <class T, class F> DEVICE T atomic_update(T* at, F next) {
    typedef BitsOf<T> Bits;
    Bits* bits = reinterpret_cast<Bits*>(at);
    Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(
        bits, &old, __builtin_bit_cast(Bits, next(__builtin_bit_cast(T, old))), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return __builtin_bit_cast(T, old);
}
} // namespace frontier

#define FRONTIER_ATOMIC(name, expression) \
    template <class T, class U> DEVICE T name(T* at, U other) { \
        const T y = T(other); \
        return frontier::atomic_update(at, [y](T x) { return T(expression); }); \
    }
FRONTIER_ATOMIC(atomicAdd, x + y)
FRONTIER_ATOMIC(unsafeAtomicAdd, x + y)
FRONTIER_ATOMIC(atomicMin, min(x, y))
FRONTIER_ATOMIC(atomicMax, max(x, y))
FRONTIER_ATOMIC(atomicAnd, x & y)
FRONTIER_ATOMIC(atomicOr, x | y)
FRONTIER_ATOMIC(atomicXor, (x ^ y))
FRONTIER_ATOMIC(atomicExch, y)
#undef FRONTIER_ATOMIC
template <class T> DEVICE T atomicCAS(T* at, T expected, T desired) {
    return frontier::atomic_update(at, [=](T x) { return x == expected ? desired : x; });
}

#include "cpu_builtins.h"
#include "cpu_cuda.h"

namespace frontier {
/// Calls a kernel, whose parameters are all pointers.
template <class... Parameters> DEVICE void call(void (*kernel)(Parameters...), void* const* arguments) {
    // Braces evaluate from left to right.
    struct Call {
        DEVICE_MEMBER Call(void (*kernel)(Parameters...), Parameters... arguments) { kernel(arguments...); }
    } called{kernel, reinterpret_cast<Parameters>(*arguments++)...};
}
} // namespace frontier
