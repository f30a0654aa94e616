// Functions of CubeCL's HIP text that are the same on a GPU and on a CPU, on top of the float functions that gpu.h and
// cpu.h define before they include this.
#pragma once

// ---- half precision, by way of float: f16 as `__half`, bf16 as `__hip_bfloat16`

#define FRONTIER_HALF_FUNCTION(name, T, function) \
    DEVICE T name(T x) { return T(function(float(x))); }
#define FRONTIER_HALF_FUNCTIONS(T) \
    FRONTIER_HALF_FUNCTION(hexp, T, exp) \
    FRONTIER_HALF_FUNCTION(hlog, T, log) \
    FRONTIER_HALF_FUNCTION(hsin, T, sin) \
    FRONTIER_HALF_FUNCTION(hcos, T, cos) \
    FRONTIER_HALF_FUNCTION(hsqrt, T, sqrt) \
    FRONTIER_HALF_FUNCTION(hrsqrt, T, rsqrt) \
    FRONTIER_HALF_FUNCTION(hceil, T, ceil) \
    FRONTIER_HALF_FUNCTION(hfloor, T, floor) \
    FRONTIER_HALF_FUNCTION(htrunc, T, trunc) \
    FRONTIER_HALF_FUNCTION(hrint, T, rint) \
    FRONTIER_HALF_FUNCTION(__habs, T, fabs) \
    DEVICE bool __hisnan(T x) { return float(x) != float(x); } \
    DEVICE bool __hisinf(T x) { return fabs(float(x)) == __builtin_inff(); } \
    DEVICE T __hmax(T x, T y) { return T(max(float(x), float(y))); } \
    DEVICE T __hmin(T x, T y) { return T(min(float(x), float(y))); } \
    DEVICE T __hmax_nan(T x, T y) { return __hisnan(x) ? x : __hisnan(y) ? y : __hmax(x, y); } \
    DEVICE T __hmin_nan(T x, T y) { return __hisnan(x) ? x : __hisnan(y) ? y : __hmin(x, y); } \
    DEVICE T __hfma(T x, T y, T z) { return T(fma(float(x), float(y), float(z))); }
FRONTIER_HALF_FUNCTIONS(__half)
FRONTIER_HALF_FUNCTIONS(__hip_bfloat16)
#undef FRONTIER_HALF_FUNCTIONS
#undef FRONTIER_HALF_FUNCTION

// ---- integers

#define FRONTIER_EXTREMES(T) \
    DEVICE T min(T x, T y) { return x < y ? x : y; } \
    DEVICE T max(T x, T y) { return x > y ? x : y; }
FRONTIER_EXTREMES(int)
FRONTIER_EXTREMES(unsigned)
FRONTIER_EXTREMES(long)
FRONTIER_EXTREMES(unsigned long)
FRONTIER_EXTREMES(long long)
FRONTIER_EXTREMES(unsigned long long)
#undef FRONTIER_EXTREMES

DEVICE int abs(int x) { return x < 0 ? -x : x; }
DEVICE long long abs(long long x) { return x < 0 ? -x : x; }

DEVICE int __popc(unsigned x) { return __builtin_popcount(x); }
DEVICE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
DEVICE unsigned __brev(unsigned x) { return __builtin_bitreverse32(x); }
DEVICE unsigned long long __brevll(unsigned long long x) { return __builtin_bitreverse64(x); }
DEVICE int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
DEVICE int __clzll(unsigned long long x) { return x ? __builtin_clzll(x) : 64; }
DEVICE int __ffs(unsigned x) { return __builtin_ffs(int(x)); }
DEVICE int __ffsll(unsigned long long x) { return __builtin_ffsll((long long)x); }
DEVICE int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
DEVICE unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
DEVICE long long __mul64hi(long long x, long long y) { return (long long)((__int128)x * y >> 64); }
DEVICE unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
