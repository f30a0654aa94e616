//! What the GPU kernels refuse is an error where they are required. A program of its own: that is switched on for a process,
//! once.

#![cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]

mod harness;

use burn::tensor::{Device, Tensor};
use burn_frontier::device;
use burn_frontier::ops::attention::{AttentionOptions, attention, attention_with_biases};
use burn_frontier::ops::{kernels, sum_squares::sum_of_squares};
use harness::gpu::gpu;

fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::zeros(shape, &device.clone().autodiff()).require_grad()
}

#[test]
fn a_refused_kernel_is_an_error_where_kernels_are_required() {
    let Some(gpu) = gpu() else { return };
    let device = gpu.of_rank(0);
    let options = AttentionOptions::full(8);
    let by_heads_of = |head_dim| {
        let [q, k, v] = [0, 1, 2].map(|_| zeros([1, 2, 4, head_dim], &device));
        attention(q, k, v, &options)
    };
    // Burn's own kernels have no limit.
    by_heads_of(264).unwrap();
    kernels::check().unwrap();

    let cpu = device::choose(Some("cpu")).unwrap();
    let refusal = kernels::require(&cpu).unwrap_err().to_string();
    assert!(refusal.contains("has no kernels to require"), "{refusal}");
    kernels::require(&gpu).unwrap();
    by_heads_of(8).unwrap();
    kernels::check().unwrap();

    // A backward pass returns no error: the step meets it where it takes the gradient's norm. One key's bias changes nothing,
    // and the kernels have no gradient for it.
    let [q, k, v] = [4, 1, 1].map(|rows| zeros([1, 2, rows, 8], &device));
    let bias = zeros([1, 1, 4, 1], &device);
    let output = attention_with_biases(q.clone(), k, v, [Some(bias), None], &options).unwrap();
    let gradients = output.sum().backward();
    let dq = q
        .grad(&gradients)
        .expect("computed otherwise")
        .flatten(0, 3);
    let refusal = sum_of_squares(&[dq]).unwrap_err().to_string();
    for part in ["attention_backward", "required", "does not vary along keys"] {
        assert!(refusal.contains(part), "{part} is not in: {refusal}");
    }
    assert_eq!(kernels::check().unwrap_err().to_string(), refusal);
    assert_eq!(by_heads_of(264).unwrap_err().to_string(), refusal);
}
