//! Half precision follows full precision, in every layout.

mod harness;

use burn::tensor::DType;
use burn_frontier::Layout;
use burn_frontier::models::gpt::GptConfig;
use harness::Run;

fn losses(dtype: DType, tp: usize, pp: usize, dp: usize) -> Vec<f64> {
    let run = Run {
        dtype,
        layout: Layout { tp, pp, dp },
        zero: 1,
        micro_batch: 2,
        ..Run::single(GptConfig::new(4, 32, 4, 61, 16))
    };
    run.train().unwrap().losses
}

#[test]
fn bf16_with_master_weights_follows_fp32() {
    let full = losses(DType::F32, 1, 1, 1);
    for (tp, pp, dp) in [(1, 1, 1), (2, 1, 2), (1, 2, 1)] {
        let half = losses(DType::BF16, tp, pp, dp);
        for (step, (a, b)) in half.iter().zip(&full).enumerate() {
            // A bf16 number has 8 bits; the loss averages over 128 tokens.
            assert!(
                (a - b).abs() < 1e-2 * b,
                "tp {tp} pp {pp} dp {dp}, step {step}: {a} instead of {b}"
            );
        }
    }
}

#[test]
fn fp16_follows_fp32() {
    let (half, full) = (losses(DType::F16, 2, 1, 1), losses(DType::F32, 1, 1, 1));
    for (step, (a, b)) in half.iter().zip(&full).enumerate() {
        assert!((a - b).abs() < 5e-3 * b, "step {step}: {a} instead of {b}");
    }
}
