//! What this machine does: matrix products, memory, kernels, collectives between threads.

use std::time::Instant;

use burn::tensor::{DType, Device as BurnDevice, Tensor};
use burn_frontier::Result;
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::comm::{Buffer, Reduction};
use burn_frontier::plan::Machine;

use crate::console;

/// Shapes of the products, (m, n, k).
const PRODUCTS: [(usize, usize, usize); 8] = [
    (128, 128, 128),
    (256, 384, 128),
    (1024, 512, 128),
    (1024, 128, 512),
    (512, 2048, 512),
    (1024, 1024, 1024),
    (2048, 1024, 1024),
    (128, 512, 1024),
];
/// Bytes of the collectives, small and large.
const BYTES: [usize; 2] = [1 << 12, 1 << 23];

/// Seconds that `work` takes: the best of a few repetitions that last long enough for the clock.
fn seconds(mut work: impl FnMut()) -> f64 {
    work();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let (start, mut times) = (Instant::now(), 0);
        while start.elapsed().as_secs_f64() < 0.02 {
            work();
            times += 1;
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(times));
    }
    best
}

fn ones<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::ones(shape, (&BurnDevice::flex(), DType::F32))
}

/// A copy of `machine` with what was measured here; efficiencies of products by a fit to all shapes.
pub fn measure(machine: &Machine) -> Result<Machine> {
    let mut measured = machine.clone();
    let device = &mut measured.device;
    let rates: Vec<_> = PRODUCTS
        .iter()
        .map(|&(m, n, k)| {
            let (a, b) = (ones([m, k]), ones([k, n]));
            let time = seconds(|| drop(a.clone().matmul(b.clone()).into_data()));
            let rate = 2.0 * (m * n * k) as f64 / time;
            console::note(format_args!(
                "product {m} x {n} x {k}: {:.1} GFLOP/s",
                rate / 1e9
            ));
            ((m, n, k), rate)
        })
        .collect();
    let best = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    // The peak of a CPU is not on a data sheet: nothing may be faster than the fastest product, with a margin.
    device.single_tflops = best / 1e12 / device.gemm_ceiling;
    device.half_tflops = device.single_tflops;
    (device.half_tiles, device.half_depth) = saturation(&rates, best);

    // About as large as a layer's tensors, whose memory the allocator uses again.
    let x = ones([1 << 20]);
    let copy = seconds(|| drop(x.clone().add_scalar(1.0)));
    device.memory_gbs = 2.0 * 4.0 * (1 << 20) as f64 / copy / 1e9;
    let small = ones([64]);
    device.kernel_us = 1e6 * seconds(|| drop(small.clone().add_scalar(1.0)));
    device.launch_us = 0.0;
    console::note(format_args!(
        "memory {:.1} GB/s, a kernel {:.2} us",
        device.memory_gbs, device.kernel_us
    ));

    let [short, long] = BYTES.map(|bytes| all_reduce(2, bytes));
    let (short, long) = (short?, long?);
    // Of two ranks: bytes / rate + two hops.
    let per_byte = (long - short) / (BYTES[1] - BYTES[0]) as f64;
    let link = &mut measured.links.node;
    (link.gbs, link.us) = (1e-9 / per_byte.max(1e-15), 1e6 * short / 2.0);
    console::note(format_args!(
        "all-reduce of two ranks: {:.2} GB/s, {:.1} us a hop",
        link.gbs, link.us
    ));
    measured.links.card = measured.links.node;
    measured.name = "here".into();
    measured.about = "measured by `cargo xtask measure`, ranks as threads on the CPU".into();
    Ok(measured)
}

/// The half-saturation constants under which the rates of all products differ least, in the logarithm.
fn saturation(rates: &[((usize, usize, usize), f64)], best: f64) -> (f64, f64) {
    let error = |tiles: f64, depth: f64| -> f64 {
        let of = |&((m, n, k), rate): &((usize, usize, usize), f64)| {
            let all = (m.div_ceil(128) * n.div_ceil(128)) as f64;
            let share = all / (all + tiles) * k as f64 / (k as f64 + depth);
            (best * share / rate).ln().powi(2)
        };
        rates.iter().map(of).sum()
    };
    let steps = || (0..24).map(|i| 0.05 * 1.5f64.powi(i));
    let pairs = steps().flat_map(|tiles| steps().map(move |depth| (tiles, depth)));
    let found = pairs.min_by(|a, b| error(a.0, a.1).total_cmp(&error(b.0, b.1)));
    found.unwrap_or((1.0, 1.0))
}

/// Seconds of an all-reduce of `bytes` over `ranks` threads.
fn all_reduce(ranks: usize, bytes: usize) -> Result<f64> {
    let times = local::run(ranks, &LocalOptions::default(), |world| {
        let mut best = f64::INFINITY;
        for _ in 0..20 {
            let data = Buffer::F32(vec![1.0; bytes / 4]);
            world.barrier()?;
            let start = Instant::now();
            world.all_reduce(data, Reduction::Sum)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    })?;
    Ok(times.into_iter().fold(0.0, f64::max))
}
