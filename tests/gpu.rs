//! A GPU gives the CPU's answer. The GPU is what the graphics driver offers, Mesa's imitation on the CPU included; with
//! `GPU=cuda` or `GPU=rocm`, one of those.
//!
//! The tolerance is that of layouts among each other. On Mesa's llvmpipe, losses and gradient norms agreed within 3e-8
//! and parameters within 4e-6: it rounds as the CPU does. A GPU's own exponential and fused products are less exact.

#![cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]

#[path = "gpu/events.rs"]
mod events;
mod harness;
#[path = "gpu/sums.rs"]
mod sums;

use burn::tensor::DType;
use burn_frontier::Layout;
use burn_frontier::Recompute;
use burn_frontier::device;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::ops::attention::writes_no_scores;
use harness::gpu::gpu;
use harness::{Run, assert_agrees};

/// What every GPT does by kernels.
const COMMON: [&str; 12] = [
    "adamw",
    "add_norm",
    "add_norm_backward",
    "attention",
    "attention_backward",
    "cross_entropy",
    "dropout",
    "feed_forward",
    "gradient_sum",
    "linear",
    "norm",
    "sum_of_squares",
];

/// Checks that a run on a GPU agrees with the CPU's, and that these operations were kernels of frontier-kernels in it.
fn follows_the_cpu(cpu: Run, operations: &[&str]) {
    let Some(gpu) = gpu() else { return };
    let run = Run {
        device: gpu.of_rank(0),
        ..cpu.clone()
    };
    let kernels = events::Kernels::watch();
    let (gpu, cpu) = (run.train().unwrap(), cpu.train().unwrap());
    assert_agrees(&gpu, &cpu, "on a GPU");
    for operation in operations {
        kernels.assert_taken(operation);
    }
    kernels.assert_none_refused();
}

#[test]
fn attention_on_a_gpu_is_known_to_write_no_scores() {
    let Some(gpu) = gpu() else { return };
    let fused = |dtype| writes_no_scores(&gpu.of_rank(0), dtype, [2, 4, 16, 8], 4);
    assert!(fused(DType::F32));
    assert!(!fused(DType::F64));
    // What the allocator holds is known of every GPU, an imitation included.
    assert!(gpu.of_rank(0).memory_pool_usage().is_some());
}

#[test]
fn one_rank_on_a_gpu_follows_the_cpu() {
    follows_the_cpu(
        Run {
            steps: 5,
            ..Run::single(GptConfig::new(2, 32, 4, 61, 16).with_dropout(0.1))
        },
        &COMMON,
    );
}

#[test]
fn four_ranks_that_share_a_gpu_follow_the_cpu() {
    // Llama's form: rotary positions, SwiGLU, RMS norm, and grouped-query attention.
    follows_the_cpu(
        Run {
            layout: Layout {
                tp: 2,
                pp: 2,
                ..Layout::single()
            },
            sequence_parallel: true,
            recompute: Recompute::Selective,
            micro_batch: 4,
            steps: 5,
            ..Run::single(
                GptConfig::new(2, 32, 4, 61, 16)
                    .modern()
                    .with_kv_heads(2)
                    .with_dropout(0.1),
            )
        },
        &[&COMMON[..], &["rotary"]].concat(),
    );
}

#[test]
fn a_type_that_a_gpu_cannot_compute_in_is_refused() {
    let Some(gpu) = gpu() else { return };
    gpu.check_dtype(DType::F32).unwrap();
    // The shading language of wgpu has no such type.
    if gpu.name().starts_with("wgpu") {
        let refusal = gpu.check_dtype(DType::BF16).unwrap_err().to_string();
        assert!(refusal.contains("fp32"), "{refusal}");
    }
}

#[test]
fn what_only_imitates_a_gpu_is_not_taken_unasked() {
    let Some(gpu) = gpu() else { return };
    let auto = device::choose(None).unwrap();
    if gpu.reason.contains("imitates") {
        assert_ne!(auto.of_rank(0), gpu.of_rank(0), "{}", auto.reason);
    }
}
