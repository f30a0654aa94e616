//! The test of the tests: the CPU harness computes what a GPU would, and finds the faults that are planted here.

use std::time::Duration;

use frontier_kernels::hip::emit::Source;
use frontier_kernels::hip::run::{Launch, Sanitizer, Scalars, bytes, values};
use frontier_kernels::matrix::instruction::Target;
use half::{bf16, f16};

const SANITIZERS: [Sanitizer; 3] = [Sanitizer::None, Sanitizer::Thread, Sanitizer::Address];

/// What CubeCL prints before every kernel.
const TYPES: &str = "typedef unsigned int uint32_t;
typedef unsigned long long int uint64_t;
template <typename T, size_t N>
struct array {
    T data[N];
    __device__ T& operator[](size_t i) { return data[i]; }
    __device__ const T& operator[](size_t i) const { return data[i]; }
};
";

/// A kernel written by hand as CubeCL would print it. `parameters` follow `kernel(`.
fn kernel(target: Target, units: u32, parameters: &str, body: &str) -> Source {
    let info = match parameters.contains("info_st") {
        true => {
            "struct info_st {\n    float scalars_f32[2];\nuint32_t scalars_u32[2];uint32_t static_meta[2];\n};\n"
        }
        false => "",
    };
    Source {
        name: "by_hand".into(),
        entry: "kernel".into(),
        text: format!(
            "{TYPES}{info}extern \"C\" __global__ void __launch_bounds__({units}) kernel({parameters}) {{\n{body}\n}}\n"
        ),
        target,
        units: [units, 1, 1],
        shared_memory: 1024,
    }
}

/// Sums `scale * x` over a workgroup: shuffles within a wave, shared memory between waves.
fn sum(target: Target) -> Source {
    let parameters = "float const* const __restrict__ x, float * const __restrict__ out, info_st const* const __restrict__ info";
    let body = "extern __shared__ __align__(8) char lds[];
array<float, 8> * const part = reinterpret_cast<array<float, 8> *>(&lds[0]);
float sum = 0;
uint32_t const step = gridDim.x * blockDim.x;
for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < info->static_meta[0]; i += step) {
    sum = fma(x[i], info->scalars_f32[0], sum);
}
for (uint32_t mask = warpSize / 2; mask > 0; mask /= 2) { sum += __shfl_xor(sum, mask); }
if (threadIdx.x % warpSize == 0) { (*part)[threadIdx.x / warpSize] = sum; }
__syncthreads();
if (threadIdx.x == 0) {
    float all = 0;
    for (uint32_t i = 0; i < blockDim.x / warpSize; i += 1) { all += (*part)[i]; }
    out[blockIdx.x + info->scalars_u32[1]] = all;
}";
    kernel(target, 256, parameters, body)
}

#[test]
fn a_sum_is_exact_on_both_wave_sizes_in_every_order_and_under_every_sanitizer() {
    let x: Vec<f32> = (0..1000).map(|i| (i % 7) as f32 - 2.0).collect();
    let expected = 0.5 * x.iter().sum::<f32>();
    for target in [Target::Gfx90a, Target::Gfx1100] {
        let source = sum(target);
        for (lane_order, sanitizer) in (0..4).zip(SANITIZERS.into_iter().cycle()) {
            let out = vec![f32::NAN; 5];
            let mut launch = Launch::new(&source, [3, 1, 1], vec![bytes(&x), bytes(&out)]);
            launch.scalars = Scalars {
                f32: vec![0.5],
                u32: vec![9, 2],
                ..Scalars::default()
            };
            (launch.lane_order, launch.sanitizer) = (lane_order, sanitizer);
            let out: Vec<f32> = values(&launch.run().unwrap()[1]).unwrap();
            assert!(out[..2].iter().all(|x| x.is_nan()), "{out:?}");
            assert_eq!(
                out[2..].iter().sum::<f32>(),
                expected,
                "{target:?} order {lane_order}"
            );
        }
    }
}

/// Reverses each block's 256 elements by way of shared memory: threads read what another wave wrote.
fn reverse(barrier: &str) -> Source {
    let body = format!(
        "extern __shared__ __align__(8) char lds[];
array<float, 256> * const all = reinterpret_cast<array<float, 256> *>(&lds[0]);
uint32_t const at = blockIdx.x * 256 + threadIdx.x;
(*all)[threadIdx.x] = x[at];
{barrier}
x[at] = (*all)[255 - threadIdx.x];"
    );
    kernel(Target::Gfx90a, 256, "float * const __restrict__ x", &body)
}

#[test]
fn a_missing_barrier_is_a_race_for_the_sanitizer_and_a_nan_without_it() {
    let x: Vec<f32> = (0..512).map(|i| i as f32).collect();
    let run = |source: &Source, sanitizer| {
        let mut launch = Launch::new(source, [2, 1, 1], vec![bytes(&x)]);
        launch.sanitizer = sanitizer;
        launch.run()
    };
    let correct = reverse("__syncthreads();");
    let reversed: Vec<f32> = x
        .chunks(256)
        .flat_map(|block| block.iter().rev().copied())
        .collect();
    for sanitizer in SANITIZERS {
        assert_eq!(
            run(&correct, sanitizer).unwrap()[0],
            bytes(&reversed),
            "{sanitizer:?}"
        );
    }
    let faulty = reverse("");
    let after: Vec<f32> = values(&run(&faulty, Sanitizer::None).unwrap()[0]).unwrap();
    assert!(after.iter().any(|x| x.is_nan()));
    let race = run(&faulty, Sanitizer::Thread).unwrap_err().to_string();
    assert!(race.contains("data race"), "{race}");
}

#[test]
fn blocks_that_write_the_same_element_race_unless_by_atomics() {
    let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let run = |statement: &str, blocks| {
        let source = kernel(
            Target::Gfx90a,
            64,
            "float * const __restrict__ x",
            statement,
        );
        let mut launch = Launch::new(&source, [blocks, 1, 1], vec![bytes(&x)]);
        launch.sanitizer = Sanitizer::Thread;
        launch.run()
    };
    let adding = run("atomicAdd(&x[threadIdx.x], 0.5f);", 40).unwrap();
    let expected: Vec<f32> = x.iter().map(|x| x + 20.0).collect();
    assert_eq!(adding[0], bytes(&expected));
    run("x[threadIdx.x] += 0.5f;", 1).unwrap();
    let race = run("x[threadIdx.x] += 0.5f;", 2).unwrap_err().to_string();
    assert!(race.contains("data race"), "{race}");
}

/// `D = A B` by one instruction; `row` is the row of D that the lane holds in `r`.
fn product(row: &str) -> Source {
    let parameters = "__half const* const __restrict__ a, __half const* const __restrict__ b, float * const __restrict__ d";
    let body = format!(
        "typedef _Float16 half_x4 __attribute__((ext_vector_type(4)));
typedef float float_x16 __attribute__((ext_vector_type(16)));
uint32_t const lane = threadIdx.x;
half_x4 fa, fb;
for (int e = 0; e < 4; e += 1) {{
    fa[e] = a[(lane % 32) * 8 + 4 * (lane / 32) + e];
    fb[e] = b[(4 * (lane / 32) + e) * 32 + lane % 32];
}}
float_x16 const result = __builtin_amdgcn_mfma_f32_32x32x8f16(fa, fb, float_x16{{}}, 0, 0, 0);
for (int r = 0; r < 16; r += 1) {{ d[({row}) * 32 + lane % 32] = result[r]; }}"
    );
    kernel(Target::Gfx90a, 64, parameters, &body)
}

#[test]
fn a_wrong_lane_map_gives_a_wrong_product() {
    let a: Vec<f16> = (0..32 * 8)
        .map(|i| f16::from_f32(((i * 5 + 3) % 17) as f32 - 8.0))
        .collect();
    let b: Vec<f16> = (0..8 * 32)
        .map(|i| f16::from_f32(((i * 7 + 1) % 13) as f32 - 6.0))
        .collect();
    let expected: Vec<f32> = (0..32 * 32)
        .map(|at| {
            (0..8)
                .map(|k| a[at / 32 * 8 + k].to_f32() * b[k * 32 + at % 32].to_f32())
                .sum()
        })
        .collect();
    let run = |row: &str| -> Vec<f32> {
        let source = product(row);
        let d = vec![f32::NAN; 32 * 32];
        let launch = Launch::new(&source, [1, 1, 1], vec![bytes(&a), bytes(&b), bytes(&d)]);
        values(&launch.run().unwrap()[2]).unwrap()
    };
    assert_eq!(run("8 * (r / 4) + 4 * (lane / 32) + r % 4"), expected);
    assert_ne!(run("r + 16 * (lane / 32)"), expected);
}

#[test]
fn only_mi200_takes_subnormal_halves_for_zero_in_matrix_instructions() {
    let tiny = f16::from_bits(1 << 9);
    assert!(!tiny.is_normal());
    let mut source = product("8 * (r / 4) + 4 * (lane / 32) + r % 4");
    for (target, expected) in [(Target::Gfx90a, 0.0), (Target::Gfx942, 8.0 * tiny.to_f32())] {
        source.target = target;
        let ones = vec![f16::ONE; 8 * 32];
        let buffers = vec![
            bytes(&[tiny; 32 * 8]),
            bytes(&ones),
            bytes(&[f32::NAN; 32 * 32]),
        ];
        let after = Launch::new(&source, [1, 1, 1], buffers).run().unwrap();
        assert_eq!(after[2], bytes(&[expected; 32 * 32]), "{target:?}");
    }
}

#[test]
fn an_access_beyond_an_array_or_a_buffer_is_found() {
    let body = "extern __shared__ __align__(8) char lds[];
array<float, 64> * const one = reinterpret_cast<array<float, 64> *>(&lds[0]);
array<float, 192> * const other = reinterpret_cast<array<float, 192> *>(&lds[256]);
(*one)[threadIdx.x + AT] = x[threadIdx.x + FROM];
(*other)[threadIdx.x] = 1;
__syncthreads();
x[threadIdx.x] = (*one)[threadIdx.x];";
    let run = |at: &str, from: &str| {
        let body = body.replace("AT", at).replace("FROM", from);
        let source = kernel(Target::Gfx90a, 64, "float * const __restrict__ x", &body);
        let mut launch = Launch::new(&source, [1, 1, 1], vec![bytes(&[1.0_f32; 64])]);
        launch.sanitizer = Sanitizer::Address;
        launch.run().map_err(|error| error.to_string())
    };
    run("0", "0").unwrap();
    let into_the_next_array = run("1", "0").unwrap_err();
    assert!(
        into_the_next_array.contains("beyond an array")
            && into_the_next_array.contains("by_hand.hip"),
        "{into_the_next_array}"
    );
    let beyond_the_buffer = run("0", "1").unwrap_err();
    assert!(
        beyond_the_buffer.contains("heap-buffer-overflow"),
        "{beyond_the_buffer}"
    );
}

#[test]
fn an_access_beyond_the_shared_memory_of_the_workgroup_is_found() {
    let body = "extern __shared__ __align__(8) char lds[];
float * const last = reinterpret_cast<float *>(&lds[AT]);
*last = 1;
x[threadIdx.x] = *last;";
    let run = |at: &str| {
        let body = body.replace("AT", at);
        let source = kernel(Target::Gfx90a, 64, "float * const __restrict__ x", &body);
        let mut launch = Launch::new(&source, [1, 1, 1], vec![bytes(&[0.0_f32; 64])]);
        launch.sanitizer = Sanitizer::Address;
        launch.run().map_err(|error| error.to_string())
    };
    run("1020").unwrap();
    let beyond = run("1024").unwrap_err();
    assert!(beyond.contains("AddressSanitizer"), "{beyond}");
}

#[test]
fn lanes_that_part_are_an_error_and_no_hang() {
    let fault = |body: &str| {
        let source = kernel(Target::Gfx90a, 128, "float * const __restrict__ x", body);
        let mut launch = Launch::new(&source, [1, 1, 1], vec![bytes(&[0.0_f32; 128])]);
        launch.time_limit = Duration::from_secs(20);
        launch.run().unwrap_err().to_string()
    };
    let barrier = fault("if (threadIdx.x < 64) { __syncthreads(); }");
    assert!(barrier.contains("never reach"), "{barrier}");
    let two = fault("if (threadIdx.x < 64) { __syncthreads(); x[0] = 1; }\n__syncthreads();");
    assert!(two.contains("elsewhere"), "{two}");
    let shuffle =
        fault("if (threadIdx.x % 2 == 0) { x[0] = __shfl_xor(x[1], 1); }\n__syncthreads();");
    assert!(shuffle.contains("lanes have parted"), "{shuffle}");
    let matrix = fault(
        "typedef float float_x4 __attribute__((ext_vector_type(4)));
if (threadIdx.x % 64 > 3) { return; }
x[threadIdx.x] = __builtin_amdgcn_mfma_f32_16x16x4f32(1.0f, 1.0f, float_x4{}, 0, 0, 0)[0];",
    );
    assert!(matrix.contains("the hardware takes all lanes"), "{matrix}");
}

#[test]
fn a_kernel_that_does_not_end_is_stopped() {
    let body = "while (*(float volatile*)x == 0) { }";
    let source = kernel(Target::Gfx90a, 64, "float * const __restrict__ x", body);
    let mut launch = Launch::new(&source, [1, 1, 1], vec![bytes(&[0.0_f32])]);
    launch.time_limit = Duration::from_millis(300);
    let error = launch.run().unwrap_err().to_string();
    assert!(error.contains("still running"), "{error}");
}

#[test]
fn what_does_not_fit_the_kernel_is_refused() {
    let source = sum(Target::Gfx90a);
    let refused = |buffers: Vec<Vec<u8>>, u32: Vec<u32>| {
        let mut launch = Launch::new(&source, [1, 1, 1], buffers);
        launch.scalars = Scalars {
            f32: vec![1.0],
            u32,
            ..Scalars::default()
        };
        launch.run().unwrap_err().to_string()
    };
    let float = bytes(&[0.0_f32]);
    assert!(refused(vec![float.clone()], vec![1, 0]).contains("takes 2 buffers, but 1"));
    assert!(refused(vec![float.clone(), vec![0; 3]], vec![1, 0]).contains("no multiple"));
    assert!(refused(vec![float.clone(), float.clone()], vec![1, 2, 3]).contains("room for 2"));
    let broken = kernel(
        Target::Gfx90a,
        64,
        "float * const __restrict__ x",
        "this is no C++",
    );
    let error = Launch::new(&broken, [1, 1, 1], vec![float])
        .run()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("does not compile") && error.contains("by_hand.hip"),
        "{error}"
    );
}

/// What each lane of a wave gets from `expression`, in which `i` is its index.
fn of_lanes(expression: &str) -> Vec<u32> {
    let body = format!("uint32_t const i = threadIdx.x;\nx[i] = {expression};");
    let source = kernel(Target::Gfx90a, 64, "uint32_t * const __restrict__ x", &body);
    let after = Launch::new(&source, [1, 1, 1], vec![bytes(&[0_u32; 64])])
        .run()
        .unwrap();
    values(&after[0]).unwrap()
}

#[test]
fn lanes_exchange_what_the_isa_says() {
    let lanes = |from: fn(u32) -> u32| (0..64).map(from).collect::<Vec<_>>();
    let dpp = |control| {
        of_lanes(&format!(
            "__builtin_amdgcn_update_dpp(99u, i, {control}, 0xf, 0xf, false)"
        ))
    };
    assert_eq!(dpp("0x1b"), lanes(|i| i ^ 3), "quad_perm 3 2 1 0");
    assert_eq!(
        dpp("0x102"),
        lanes(|i| if i % 16 < 14 { i + 2 } else { 99 }),
        "row_shl"
    );
    assert_eq!(
        dpp("0x111"),
        lanes(|i| if i % 16 > 0 { i - 1 } else { 99 }),
        "row_shr"
    );
    assert_eq!(dpp("0x128"), lanes(|i| i ^ 8), "row_ror");
    assert_eq!(
        of_lanes("__builtin_amdgcn_mov_dpp(i + 1, 0x111, 0xf, 0xf, true)"),
        lanes(|i| if i % 16 > 0 { i } else { 0 })
    );
    assert_eq!(
        of_lanes("__builtin_amdgcn_ds_bpermute(4 * (63 - i), i)"),
        lanes(|i| 63 - i)
    );
    assert_eq!(
        of_lanes("__builtin_amdgcn_readfirstlane(i + 7)"),
        lanes(|_| 7)
    );
    assert_eq!(
        of_lanes("__shfl_up(i, 3)"),
        lanes(|i| if i < 3 { i } else { i - 3 })
    );
    assert_eq!(
        of_lanes("__shfl_down(i, 1, 8)"),
        lanes(|i| if i % 8 < 7 { i + 1 } else { i })
    );
    assert_eq!(of_lanes("__shfl(i, 5, 16)"), lanes(|i| i / 16 * 16 + 5));
    assert_eq!(
        of_lanes("uint32_t(__ballot(i % 3 == 1) >> 32)"),
        lanes(|_| 0x2492_4924)
    );
}

#[test]
fn arithmetic_builtins_compute_what_the_isa_says() {
    let first = |expression: &str| of_lanes(expression)[0];
    assert_eq!(
        first("__builtin_amdgcn_perm(0x77665544u, 0x33221100u, 0x0c070500u)"),
        0x0077_5500
    );
    assert_eq!(
        first("uint32_t(__builtin_amdgcn_fmed3f(5.0f, 1.0f, 3.0f))"),
        3
    );
    let narrow = |low: f32, high: f32| {
        let (low, high) = (low.to_bits(), high.to_bits());
        let float = |bits| format!("__builtin_bit_cast(float, {bits}u)");
        let pair = format!(
            "__builtin_amdgcn_cvt_pkrtz({}, {})",
            float(low),
            float(high)
        );
        let bits = first(&format!("__builtin_bit_cast(uint32_t, {pair})"));
        [bits as u16, (bits >> 16) as u16].map(f16::from_bits)
    };
    // One and a bit less than the next half; beyond the largest half.
    assert_eq!(narrow(1.000_9, -1e6), [f16::ONE, f16::MIN]);
    assert_eq!(
        narrow(f32::INFINITY, -0.5),
        [f16::INFINITY, f16::from_f32(-0.5)]
    );
}

#[test]
fn half_precision_rounds_as_the_half_crate_does() {
    let parameters = "float const* const __restrict__ x, __half * const __restrict__ h, __hip_bfloat16 * const __restrict__ b";
    let body = "uint32_t const i = blockIdx.x * 64 + threadIdx.x;
h[i] = __half(x[i]);
b[i] = __hip_bfloat16(x[i]);";
    let source = kernel(Target::Gfx90a, 64, parameters, body);
    // Bit patterns spread over all exponents, with ties between neighbours among them.
    let x: Vec<f32> = (0..1 << 16)
        .map(|i: u32| f32::from_bits(i.wrapping_mul(0x9e37_79b9) & 0xffff_f000))
        .collect();
    let empty = vec![0_u8; 2 * x.len()];
    let buffers = vec![bytes(&x), empty.clone(), empty];
    let after = Launch::new(&source, [1 << 10, 1, 1], buffers)
        .run()
        .unwrap();
    let (h, b): (Vec<f16>, Vec<bf16>) = (values(&after[1]).unwrap(), values(&after[2]).unwrap());
    for (i, &x) in x.iter().enumerate() {
        let (f, g) = (f16::from_f32(x), bf16::from_f32(x));
        assert!(
            h[i] == f || (h[i].is_nan() && f.is_nan()),
            "{x} gives {} for {f}",
            h[i]
        );
        assert!(
            b[i] == g || (b[i].is_nan() && g.is_nan()),
            "{x} gives {} for {g}",
            b[i]
        );
    }
}
