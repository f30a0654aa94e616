// The types that CubeCL's HIP text takes for granted. hipRTC has them built in; this serves both the offline compile for
// a GPU (gpu.h) and the execution on a CPU (cpu.h), which define DEVICE first. No standard header is included here, since
// the text defines uint32_t and its kin itself.
#pragma once

typedef __SIZE_TYPE__ size_t;
typedef unsigned int uint;
typedef _Float16 __half;

namespace frontier {
template <class T> struct IsNumber { static constexpr bool value = false; };
#define FRONTIER_NUMBER(T) \
    template <> struct IsNumber<T> { static constexpr bool value = true; }
FRONTIER_NUMBER(bool);
FRONTIER_NUMBER(signed char);
FRONTIER_NUMBER(unsigned char);
FRONTIER_NUMBER(short);
FRONTIER_NUMBER(unsigned short);
FRONTIER_NUMBER(int);
FRONTIER_NUMBER(unsigned);
FRONTIER_NUMBER(long);
FRONTIER_NUMBER(unsigned long);
FRONTIER_NUMBER(long long);
FRONTIER_NUMBER(unsigned long long);
FRONTIER_NUMBER(_Float16);
FRONTIER_NUMBER(float);
FRONTIER_NUMBER(double);
#undef FRONTIER_NUMBER

template <bool, class T> struct If {};
template <class T> struct If<true, T> { typedef T type; };
template <class N, class T> using ForNumber = typename If<IsNumber<N>::value, T>::type;

/// The bits of the bf16 nearest to `x`, ties to even; a NaN stays a NaN.
DEVICE unsigned short bf16_bits(float x) {
    const unsigned bits = __builtin_bit_cast(unsigned, x);
    const unsigned rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return x != x ? bits >> 16 | 0x40 : rounded;
}
} // namespace frontier

/// Brain float: the upper half of a float. It computes in float and rounds once.
struct __hip_bfloat16 {
    unsigned short bits;

    __hip_bfloat16() = default;
    template <class N, class = frontier::ForNumber<N, void>>
    DEVICE_MEMBER __hip_bfloat16(N x) : bits(frontier::bf16_bits(float(x))) {}
    DEVICE_MEMBER operator float() const { return __builtin_bit_cast(float, unsigned(bits) << 16); }
};
