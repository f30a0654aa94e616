//! Kernels whose plans are chosen by timing them compute what those of the table do. A program of its own: tuning is switched
//! on for a process, once.

#![cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]

mod harness;

use burn_frontier::device;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::ops::tuning;
use harness::{Run, gpu::gpu};

#[test]
fn training_by_tuned_kernels_gives_the_same_bits_and_keeps_the_choices() {
    let Some(gpu) = gpu() else { return };
    let run = Run {
        device: gpu.of_rank(0),
        steps: 2,
        ..Run::single(GptConfig::new(1, 32, 4, 61, 16))
    };
    let by_table = run.train().unwrap();
    assert_eq!(tuning::summary(), None);

    let folder = tempfile::tempdir().unwrap();
    let cpu = device::choose(Some("cpu")).unwrap();
    let refusal = tuning::enable(&cpu, folder.path()).unwrap_err().to_string();
    assert!(refusal.contains("no kernels"), "{refusal}");
    tuning::enable(&gpu, folder.path()).unwrap();
    assert_eq!(run.train().unwrap(), by_table, "tuning changed the answer");

    let summary = tuning::summary().unwrap();
    eprintln!("{summary}");
    let choices = std::fs::read_dir(folder.path()).unwrap().count();
    assert!(choices > 3, "{summary}");
    assert!(
        summary.starts_with(&format!("{choices} shapes timed, 0 known")),
        "{summary}"
    );
    assert_eq!(run.train().unwrap(), by_table);
    assert_eq!(tuning::summary(), Some(summary), "timed again");

    let refusal = tuning::enable(&gpu, folder.path()).unwrap_err().to_string();
    assert!(refusal.contains("already"), "{refusal}");
}
