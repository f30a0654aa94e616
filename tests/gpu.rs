//! A GPU gives the CPU's answer. The GPU is whatever the graphics driver offers, Mesa's imitation on the CPU included.

mod harness;

use burn::tensor::Device;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::observe::flops::Recompute;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::{Layout, device};
use harness::Run;

/// The GPU. Without one the test is skipped, which it says; where CI is true, it fails.
fn gpu() -> Option<Device> {
    match device::choose(Some("wgpu")) {
        Ok(choice) => {
            println!("on {}", choice.reason);
            Some(choice.of_rank(0))
        }
        Err(error) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => panic!("{error}"),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn compare(cpu: &Run) {
    let Some(device) = gpu() else { return };
    let gpu = Run {
        device,
        ..cpu.clone()
    }
    .train()
    .unwrap();
    let cpu = cpu.train().unwrap();
    let worst = |a: &[f64], b: &[f64]| {
        let relative = a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs());
        relative.fold(0.0, f64::max)
    };
    println!("losses {:?}", gpu.losses);
    let all =
        |o: &harness::Outcome| -> Vec<f64> { o.parameters.values().flatten().copied().collect() };
    let par = all(&gpu)
        .iter()
        .zip(all(&cpu))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    println!(
        "loss {:e} norm {:e} par {par:e}",
        worst(&gpu.losses, &cpu.losses),
        worst(&gpu.norms, &cpu.norms)
    );
    harness::assert_agrees(&gpu, &cpu, "wgpu");
}

#[test]
fn one_rank_on_a_gpu_follows_the_cpu() {
    compare(&Run {
        steps: 5,
        ..Run::single(GptConfig::new(2, 32, 4, 61, 16).with_dropout(0.1))
    });
}

#[test]
fn every_split_on_a_gpu_follows_the_cpu() {
    // Rotary positions, SwiGLU, RMS norm, grouped-query attention, four ranks that share the GPU.
    compare(&Run {
        layout: Layout::new(2, 2, 1).unwrap(),
        kind: Kind::OneForwardOneBackward,
        sequence_parallel: true,
        recompute: Recompute::Selective,
        micro_batch: 4,
        steps: 5,
        ..Run::single(GptConfig::new(2, 32, 4, 61, 16).modern().with_kv_heads(2))
    });
}
