// The compiler's builtins for AMD GPUs, for cpu.h: names that a compiler for the CPU leaves free.
#pragma once

// ---- matrix instructions; their mathematics is in matrix.h

namespace frontier {
template <class T, int N> using Vector = T __attribute__((ext_vector_type(N)));

template <class Operand, class Accumulator>
DEVICE Accumulator multiply(Form form, Operand a, Operand b, Accumulator c, int modifiers = 0) {
    if (modifiers) fail("a matrix instruction with cbsz, abid or blgp: the harness has none of them");
    Accumulator d;
    multiply(form, &a, &b, &c, &d);
    return d;
}
} // namespace frontier

#define FRONTIER_MFMA(name, Operand, Accumulator) \
    DEVICE Accumulator __builtin_amdgcn_mfma_##name( \
        Operand a, Operand b, Accumulator c, int cbsz, int abid, int blgp) { \
        return frontier::multiply(frontier::Form::name, a, b, c, cbsz | abid | blgp); \
    }
#define V(T, N) frontier::Vector<T, N>
FRONTIER_MFMA(f32_32x32x8f16, V(_Float16, 4), V(float, 16))
FRONTIER_MFMA(f32_16x16x16f16, V(_Float16, 4), V(float, 4))
FRONTIER_MFMA(f32_32x32x8bf16_1k, V(short, 4), V(float, 16))
FRONTIER_MFMA(f32_16x16x16bf16_1k, V(short, 4), V(float, 4))
FRONTIER_MFMA(f32_32x32x2f32, float, V(float, 16))
FRONTIER_MFMA(f32_16x16x4f32, float, V(float, 4))
FRONTIER_MFMA(f64_16x16x4f64, double, V(double, 4))
FRONTIER_MFMA(i32_32x32x8i8, int, V(int, 16))
FRONTIER_MFMA(i32_16x16x16i8, int, V(int, 4))
FRONTIER_MFMA(i32_32x32x16_i8, long, V(int, 16))
FRONTIER_MFMA(i32_16x16x32_i8, long, V(int, 4))
#undef FRONTIER_MFMA

DEVICE V(float, 8) __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(
    V(_Float16, 16) a, V(_Float16, 16) b, V(float, 8) c) {
    return frontier::multiply(frontier::Form::wmma_f32_16x16x16_f16, a, b, c);
}
/// The operands are vectors of 16 bf16, which compilers spell as `short` or as `__bf16`.
template <class Operand>
DEVICE V(float, 8) __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(Operand a, Operand b, V(float, 8) c) {
    static_assert(sizeof(Operand) == 32, "sixteen bf16 a lane");
    return frontier::multiply(frontier::Form::wmma_f32_16x16x16_bf16, a, b, c);
}
#undef V

// ---- arithmetic

DEVICE float __builtin_amdgcn_exp2f(float x) { return exp2(x); }
DEVICE float __builtin_amdgcn_logf(float x) { return log2(x); }
DEVICE float __builtin_amdgcn_rcpf(float x) { return 1.0f / x; }
DEVICE float __builtin_amdgcn_rsqf(float x) { return 1.0f / sqrt(x); }
DEVICE float __builtin_amdgcn_sqrtf(float x) { return sqrt(x); }
DEVICE float __builtin_amdgcn_fmed3f(float x, float y, float z) {
    return max(min(x, y), min(max(x, y), z));
}
namespace frontier {
/// The f16 next to `x` on the side of zero.
DEVICE _Float16 toward_zero(float x) {
    const _Float16 nearest = _Float16(x);
    const bool beyond = fabs(float(nearest)) > fabs(x);
    return __builtin_bit_cast(_Float16, (unsigned short)(__builtin_bit_cast(unsigned short, nearest) - beyond));
}
} // namespace frontier
DEVICE frontier::Vector<_Float16, 2> __builtin_amdgcn_cvt_pkrtz(float low, float high) {
    return {frontier::toward_zero(low), frontier::toward_zero(high)};
}
/// Each byte of `selector` picks a byte of `low` (0 to 3) or `high` (4 to 7), or is 0x0c for zero.
DEVICE unsigned __builtin_amdgcn_perm(unsigned high, unsigned low, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> 8 * i & 0xff;
        if (pick > 7 && pick != 0x0c) frontier::fail("v_perm_b32 with a selector that the harness does not have");
        if (pick <= 7) result |= unsigned(bytes >> 8 * pick & 0xff) << 8 * i;
    }
    return result;
}

// ---- exchange between lanes

template <class T> DEVICE T __builtin_amdgcn_readfirstlane(T value) {
    return frontier::from_bits<T>(frontier::first_lane(frontier::to_bits(value)));
}
DEVICE int __builtin_amdgcn_ds_bpermute(int byte_address, int value) {
    return frontier::from_bits<int>(frontier::shuffle(unsigned(value), byte_address >> 2 & (warpSize - 1)));
}
/// `source` of another lane of the same row of 16, which `control` names; `old`, or 0 if `zero`, where there is none.
template <class T>
DEVICE T __builtin_amdgcn_update_dpp(T old, T source, int control, int row_mask, int bank_mask, bool zero) {
    if (row_mask != 0xf || bank_mask != 0xf) frontier::fail("DPP with a mask: the harness has none");
    const int lane = frontier::lane(), row = lane & ~15, at = lane & 15, by = control & 15;
    int from;
    switch (control >> 4) {
    case 0x10: from = at + by; break; // row_shl
    case 0x11: from = at - by; break; // row_shr
    case 0x12: from = (at - by) & 15; break; // row_ror
    default:
        if (control > 0xff) frontier::fail("DPP control that the harness does not have");
        from = (at & ~3) | (control >> 2 * (at & 3) & 3); // quad_perm
    }
    const bool within = from >= 0 && from < 16;
    const T moved = frontier::from_bits<T>(frontier::shuffle(frontier::to_bits(source), within ? row | from : lane));
    return within ? moved : zero ? T(0) : old;
}
template <class T> DEVICE T __builtin_amdgcn_mov_dpp(T source, int control, int row_mask, int bank_mask, bool zero) {
    return __builtin_amdgcn_update_dpp(source, source, control, row_mask, bank_mask, zero);
}

// ---- order and scheduling: lanes of a wave meet where the hardware has them in step

DEVICE void __builtin_amdgcn_wave_barrier() { frontier::wave_barrier(); }
template <class... Scope> DEVICE void __builtin_amdgcn_fence(int, Scope...) {}
DEVICE void __builtin_amdgcn_s_barrier() { frontier::workgroup_barrier(); }
DEVICE void __builtin_amdgcn_s_setprio(int) {}
DEVICE void __builtin_amdgcn_sched_barrier(int) {}
DEVICE void __builtin_amdgcn_sched_group_barrier(int, int, int) {}
