//! What ranks as threads cost: tokens per second of layouts on this machine's cores, beside one rank at the same global batch and
//! micro-batch. 4 layers, hidden 256, 8 heads, sequence 256, 8 samples a step by 2, in f32 with AdamW.
//!
//! `cargo bench --bench ranks [-- ROUNDS]`

#[path = "../examples/common/console.rs"]
#[macro_use]
mod console;
#[path = "../examples/measure/steps.rs"]
mod steps;

use burn_frontier::Result;
use burn_frontier::device::memory::HostMemory;
use burn_frontier::observe::progress::Screen;

/// As programs have it.
#[global_allocator]
static MEMORY: HostMemory = HostMemory::new();

const MODEL: [usize; 3] = [4, 256, 256];
/// tp, pp, dp; one rank first.
const LAYOUTS: [[usize; 3]; 7] = [
    [1, 1, 1],
    [1, 1, 2],
    [2, 1, 1],
    [1, 1, 4],
    [2, 1, 2],
    [1, 2, 2],
    [2, 2, 1],
];
/// Global and micro-batch.
const BATCH: [u64; 2] = [8, 2];

fn main() -> Result<()> {
    console::listen(&Screen::default());
    let rounds: usize = std::env::args()
        .skip(1)
        .find_map(|a| a.parse().ok())
        .unwrap_or(3);
    let mut seconds = vec![Vec::new(); LAYOUTS.len()];
    // In turn, so that what else the machine does meets all of them.
    for _ in 0..rounds {
        for (layout, seconds) in LAYOUTS.iter().zip(&mut seconds) {
            seconds.push(steps::run(steps::job(MODEL, *layout, BATCH)?)?.seconds);
        }
    }
    let tokens = BATCH[0] as f64 * MODEL[2] as f64;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    say!("{tokens} tokens a step, {cores} cores, medians of {rounds} rounds in turn\n");
    say!(
        "{:<26}{:>10}{:>12}{:>12}",
        "",
        "ms a step",
        "tokens/s",
        "of one rank"
    );
    let medians: Vec<f64> = seconds.into_iter().map(median).collect();
    for ([tp, pp, dp], time) in LAYOUTS.iter().zip(&medians) {
        let ranks = tp * pp * dp;
        say!(
            "{:<26}{:>10.1}{:>12.0}{:>12.2}",
            format!("tp {tp} x pp {pp} x dp {dp}, {ranks} ranks"),
            time * 1e3,
            tokens / time,
            medians[0] / time
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
