//! What CubeCL can print compiles for every GPU, and the compiler's figures are read right.

use frontier_kernels::hip::compile::{Compiled, compile};
use frontier_kernels::hip::emit::Source;
use frontier_kernels::matrix::instruction::Target;

const TARGETS: [Target; 3] = [Target::Gfx90a, Target::Gfx942, Target::Gfx1100];

fn compiled(target: Target, parameters: &str, body: &str) -> Compiled {
    let source = Source {
        name: "by_hand".into(),
        entry: "kernel".into(),
        text: format!(
            "typedef unsigned int uint32_t;\n#include <hip/hip_bf16.h>\n\
             extern \"C\" __global__ void __launch_bounds__(256) kernel({parameters}) {{\n{body}\n}}\n"
        ),
        target,
        units: [256, 1, 1],
        shared_memory: 1024,
    };
    compile(&source).unwrap()
}

#[test]
fn functions_types_and_atomics_compile_for_every_gpu_without_a_call() {
    let parameters = "float * const __restrict__ x, __half * const __restrict__ h, \
        __hip_bfloat16 * const __restrict__ b, uint32_t * const __restrict__ n, double * const __restrict__ d";
    let body = "extern __shared__ __align__(8) char lds[];
float * const part = reinterpret_cast<float *>(&lds[0]);
uint32_t const i = threadIdx.x + blockIdx.y * blockDim.x * gridDim.x;
part[threadIdx.x] = exp(x[i]) + log(x[i]) + tanh(x[i]) + erf(x[i]) + sqrt(x[i]) + rsqrt(x[i]) + pow(x[i], 3.5f);
__syncthreads();
x[i] = max(part[threadIdx.x ^ 64], min(__shfl_xor(x[i], 5), fabs(__shfl_down(x[i], 1)))) + __shfl(x[i], 7);
h[i] = __hmax(hexp(h[i]), __hfma(h[i], __half(x[i]), h[i + 1]));
__hip_bfloat16 const two = 2;
b[i] = hsqrt(__hip_bfloat16(x[i])) * two + __habs(b[i]);
n[i] = __popc(n[i]) + __clz(n[i]) + __umulhi(n[i], 77) + uint32_t(__ballot(n[i] > 3)) + __any(n[i] == 2);
d[i] = fma(d[i], exp(d[i]), atan2(d[i], 2.0));
atomicAdd(&x[i + 1], 1.0f);
unsafeAtomicAdd(&x[i + 2], 1.0f);
atomicMax(&n[i + 1], 5);
atomicCAS(&n[i + 2], n[0], n[1]);
__threadfence();
__builtin_amdgcn_fence(__ATOMIC_ACQ_REL, \"wavefront\");
__builtin_amdgcn_wave_barrier();";
    for target in TARGETS {
        let Compiled { assembly, usage } = compiled(target, parameters, body);
        for unresolved in ["s_swappc", "__ocml", "__oclc"] {
            assert!(
                !assembly.text().contains(unresolved),
                "{target:?} {unresolved}"
            );
        }
        assert_eq!(
            (usage.scratch, usage.spills),
            (0, 0),
            "{target:?} {usage:?}"
        );
    }
}

#[test]
fn a_copy_moves_each_byte_once() {
    let parameters = "float4 const* const __restrict__ x, float4 * const __restrict__ y";
    let types = "struct alignas(16) float4 { float a, b, c, d; };";
    let body = "y[threadIdx.x] = x[threadIdx.x];";
    for target in TARGETS {
        let source = Source {
            name: "copy".into(),
            entry: "kernel".into(),
            text: format!(
                "{types}\nextern \"C\" __global__ void __launch_bounds__(64) kernel({parameters}) {{ {body} }}\n"
            ),
            target,
            units: [64, 1, 1],
            shared_memory: 0,
        };
        let assembly = compile(&source).unwrap().assembly;
        let traffic = assembly.traffic();
        assert_eq!((traffic.loads, traffic.loaded), (1, 16), "{target:?}");
        assert_eq!((traffic.stores, traffic.stored), (1, 16), "{target:?}");
        assert_eq!(assembly.inner_loop().unwrap(), None);
    }
}

#[test]
fn a_private_array_that_is_indexed_dynamically_needs_scratch_memory() {
    let body = "float own[64];
for (uint32_t i = 0; i < 64; i += 1) { own[i] = x[i * n[0]]; }
x[threadIdx.x] = own[n[threadIdx.x]];";
    let parameters = "float * const __restrict__ x, uint32_t const* const __restrict__ n";
    for target in TARGETS {
        let usage = compiled(target, parameters, body).usage;
        assert!(usage.scratch >= 256, "{target:?} {usage:?}");
    }
}
