// The mathematics of the matrix instructions, on the registers of a whole wave. The maps are those of
// kernels/src/matrix/map.rs.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "harness.h"

namespace frontier {

/// What one lane brings, and where its part of the result belongs.
struct Registers {
    const void *a, *b, *c;
    void* d;
};

// ---- operand types: what an element is, what it is multiplied as

template <class T> T load(const void* registers, int element) {
    return static_cast<const T*>(registers)[element];
}
struct F16 {
    typedef float Number;
    static constexpr float SMALLEST_NORMAL = 0x1p-14f;
    static float at(const void* registers, int element) { return float(load<_Float16>(registers, element)); }
};
struct Bf16 {
    typedef float Number;
    static constexpr float SMALLEST_NORMAL = 0x1p-126f;
    static float at(const void* registers, int element) {
        return __builtin_bit_cast(float, uint32_t(load<uint16_t>(registers, element)) << 16);
    }
};
struct F32 {
    typedef float Number;
    static constexpr float SMALLEST_NORMAL = 0;
    static float at(const void* registers, int element) { return load<float>(registers, element); }
};
struct F64 {
    typedef double Number;
    static constexpr double SMALLEST_NORMAL = 0;
    static double at(const void* registers, int element) { return load<double>(registers, element); }
};
struct I8 {
    typedef int32_t Number;
    static constexpr int32_t SMALLEST_NORMAL = 0;
    static int32_t at(const void* registers, int element) { return load<int8_t>(registers, element); }
};

template <class Number> Number flushed(Number x, Number smallest_normal) {
    return x < smallest_normal && -x < smallest_normal ? std::copysign(Number(0), x) : x;
}
inline int32_t flushed(int32_t x, int32_t) { return x; }

/// MFMA on 64 lanes: A is SIDE x K, B is K x SIDE. RUN: consecutive rows of D in one lane.
template <class Operand, int SIDE, int K, int RUN = 4> void mfma(const Registers* lanes, bool flush) {
    typedef typename Operand::Number Number;
    constexpr int GROUPS = 64 / SIDE, ELEMENTS = K / GROUPS, RESULTS = SIDE * SIDE / 64;
    // f16 accumulates in float: what is flushed of C and D are floats.
    const Number operand_limit = flush ? Operand::SMALLEST_NORMAL : 0;
    const Number result_limit = operand_limit > 0 ? Bf16::SMALLEST_NORMAL : 0;
    const auto row = [](int lane, int e) { return RUN * (GROUPS * (e / RUN) + lane / SIDE) + e % RUN; };
    Number a[SIDE][K], b[K][SIDE], d[SIDE][SIDE];
    for (int lane = 0; lane < 64; ++lane) {
        const int outer = lane % SIDE, k = lane / SIDE * ELEMENTS;
        for (int e = 0; e < ELEMENTS; ++e) {
            a[outer][k + e] = flushed(Operand::at(lanes[lane].a, e), operand_limit);
            b[k + e][outer] = flushed(Operand::at(lanes[lane].b, e), operand_limit);
        }
        for (int e = 0; e < RESULTS; ++e)
            d[row(lane, e)][outer] = flushed(load<Number>(lanes[lane].c, e), result_limit);
    }
    for (int i = 0; i < SIDE; ++i)
        for (int k = 0; k < K; ++k)
            for (int j = 0; j < SIDE; ++j) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 64; ++lane)
        for (int e = 0; e < RESULTS; ++e)
            static_cast<Number*>(lanes[lane].d)[e] = flushed(d[row(lane, e)][lane % SIDE], result_limit);
}

/// RDNA3's WMMA on 32 lanes, 16 x 16 x 16: a lane holds a whole row of A and column of B; lanes 16 to 31 repeat the others.
template <class Operand> void wmma(const Registers* lanes) {
    constexpr int SIDE = 16, BYTES = 2 * SIDE;
    for (int lane = SIDE; lane < 2 * SIDE; ++lane) {
        const Registers &here = lanes[lane], &there = lanes[lane - SIDE];
        if (memcmp(here.a, there.a, BYTES) || memcmp(here.b, there.b, BYTES))
            fail("WMMA operands of lanes 16 to 31 that do not repeat those of lanes 0 to 15");
    }
    for (int lane = 0; lane < 2 * SIDE; ++lane)
        for (int e = 0; e < SIDE / 2; ++e) {
            const int i = 2 * e + lane / SIDE, j = lane % SIDE;
            float sum = load<float>(lanes[lane].c, e);
            for (int k = 0; k < SIDE; ++k) sum += Operand::at(lanes[i].a, k) * Operand::at(lanes[j].b, k);
            static_cast<float*>(lanes[lane].d)[e] = sum;
        }
}

/// NVIDIA's mma.sync.m16n8k16 on 32 lanes, by the tables of the PTX ISA, "Matrix fragments for mma.m16n8k16".
template <class Operand> void mma(const Registers* lanes) {
    float a[16][16], b[16][8], d[16][8];
    const auto result = [&](int lane, int e) -> float& { return d[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2]; };
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int e = 0; e < 8; ++e)
            a[group + e / 2 % 2 * 8][pair + e % 2 + e / 4 * 8] = Operand::at(lanes[lane].a, e);
        for (int e = 0; e < 4; ++e) b[pair + e % 2 + e / 2 * 8][group] = Operand::at(lanes[lane].b, e);
        for (int e = 0; e < 4; ++e) result(lane, e) = load<float>(lanes[lane].c, e);
    }
    for (int i = 0; i < 16; ++i)
        for (int k = 0; k < 16; ++k)
            for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; ++lane)
        for (int e = 0; e < 4; ++e) static_cast<float*>(lanes[lane].d)[e] = result(lane, e);
}

/// Lanes that the instruction needs.
inline int lanes_of(Form form) {
    switch (form) {
    case Form::wmma_f32_16x16x16_f16:
    case Form::wmma_f32_16x16x16_bf16:
    case Form::m16n8k16_f16:
    case Form::m16n8k16_bf16: return 32;
    default: return 64;
    }
}

/// Executes the instruction. `flush`: f16 and bf16 forms treat subnormal numbers as zero, as MI200 does.
inline void multiply(Form form, const Registers* lanes, bool flush) {
    switch (form) {
    case Form::f32_32x32x8f16: return mfma<F16, 32, 8>(lanes, flush);
    case Form::f32_16x16x16f16: return mfma<F16, 16, 16>(lanes, flush);
    case Form::f32_32x32x8bf16_1k: return mfma<Bf16, 32, 8>(lanes, flush);
    case Form::f32_16x16x16bf16_1k: return mfma<Bf16, 16, 16>(lanes, flush);
    case Form::f32_32x32x2f32: return mfma<F32, 32, 2>(lanes, flush);
    case Form::f32_16x16x4f32: return mfma<F32, 16, 4>(lanes, flush);
    case Form::f64_16x16x4f64: return mfma<F64, 16, 4, 1>(lanes, flush);
    case Form::i32_32x32x8i8: return mfma<I8, 32, 8>(lanes, flush);
    case Form::i32_16x16x16i8: return mfma<I8, 16, 16>(lanes, flush);
    case Form::i32_32x32x16_i8: return mfma<I8, 32, 16>(lanes, flush);
    case Form::i32_16x16x32_i8: return mfma<I8, 16, 32>(lanes, flush);
    case Form::wmma_f32_16x16x16_f16: return wmma<F16>(lanes);
    case Form::wmma_f32_16x16x16_bf16: return wmma<Bf16>(lanes);
    case Form::m16n8k16_f16: return mma<F16>(lanes);
    case Form::m16n8k16_bf16: return mma<Bf16>(lanes);
    }
}
} // namespace frontier
