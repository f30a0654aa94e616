// What CubeCL's CUDA text has beyond the HIP text, and what stands in for inline PTX on the CPU. For cpu.h.
#pragma once

typedef __hip_bfloat16 __nv_bfloat16;

DEVICE void __syncwarp() { frontier::wave_barrier(); }

template <class T> DEVICE T __shfl_xor_sync(unsigned lanes, T value, int mask) {
    if (lanes != ~0u) frontier::fail("a shuffle of some lanes: the harness has all of them take part");
    return __shfl_xor(value, mask);
}

namespace frontier {
/// `d = a b + d` of mma.sync, its operands as PTX has them.
template <class A, class B, class D> DEVICE void mma(Form form, A const& a, B const& b, D& d) {
    const D c = d;
    multiply(form, &a, &b, &c, &d);
}
} // namespace frontier
