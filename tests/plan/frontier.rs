//! The five published rows that the machine files of Frontier are calibrated with.

use super::job;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::plan::{Job, Machine, time};

/// TFLOP/s per GCD that the plan gives, as arXiv 2312.12705 counts them: with full recompute.
fn tflops(machine: &str, job: &Job<GptConfig>) -> f64 {
    let machine = Machine::load(machine).unwrap();
    let seconds = time::step(job, &machine).unwrap().seconds();
    let speed = time::throughput(job, &machine, seconds).unwrap();
    speed.hfu.unwrap() * machine.peak(job.precision) / 1e12
}

/// What docs/planner.md says of these rows.
const MOST: f64 = 0.08;

fn is_reproduced(machine: &str, job: &Job<GptConfig>, published: f64) {
    let planned = tflops(machine, job);
    let error = planned / published - 1.0;
    assert!(
        error.abs() <= MOST,
        "planned {planned:.1}, published {published} TFLOP/s: {:.1} %",
        100.0 * error
    );
}

const BILLIONS_22: (usize, usize, usize) = (48, 6144, 48);
const BILLIONS_175: (usize, usize, usize) = (96, 12288, 96);
const BILLIONS_1000: (usize, usize, usize) = (128, 25600, 128);

#[test]
fn the_22b_row_is_reproduced() {
    is_reproduced("frontier", &job(BILLIONS_22, (1, 8, 2), (320, 1)), 73.5);
}

#[test]
fn the_175b_row_is_reproduced() {
    is_reproduced(
        "frontier",
        &job(BILLIONS_175, (4, 16, 16), (640 * 16, 1)),
        69.2,
    );
}

#[test]
fn the_1t_row_is_reproduced() {
    is_reproduced(
        "frontier",
        &job(BILLIONS_1000, (8, 64, 6), (1600 * 6, 1)),
        61.2,
    );
}

#[test]
fn the_13b_row_of_gpt_neox_is_reproduced() {
    let published = job((40, 5120, 40), (2, 1, 256), (12 * 2 * 256, 12));
    is_reproduced("frontier-neox", &published, 45.7);
}

/// The publication does not say how many micro-batches a step had; one is assumed.
#[test]
fn the_175b_row_with_tensor_parallelism_across_nodes_is_reproduced() {
    is_reproduced(
        "frontier",
        &job(BILLIONS_175, (16, 1, 24), (8 * 24, 8)),
        33.5,
    );
}

#[test]
fn the_published_effects_of_the_layout_are_there() {
    let speed = |layout, batch| tflops("frontier", &job(BILLIONS_22, layout, batch));
    // Larger TP lowers throughput, sharply past one node.
    let by_tp: Vec<f64> = [1, 2, 4, 8, 16]
        .iter()
        .map(|&tp| speed((tp, 1, 1), (64, 1)))
        .collect();
    assert!(by_tp.windows(2).all(|pair| pair[1] < pair[0]), "{by_tp:?}");
    assert!(by_tp[4] < 0.8 * by_tp[3], "{by_tp:?}");
    // More micro-batches raise it; more stages at a fixed batch lower it; a constant ratio holds it.
    assert!(speed((2, 8, 1), (128, 1)) > 1.1 * speed((2, 8, 1), (16, 1)));
    assert!(speed((2, 16, 1), (64, 1)) < 0.95 * speed((2, 4, 1), (64, 1)));
    let ratio = speed((2, 16, 1), (128, 1)) / speed((2, 8, 1), (64, 1));
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
}
