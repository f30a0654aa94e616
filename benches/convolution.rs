//! Convolutions of science models on the CPU, forward and both gradients: ours beside Burn's. `benches/conv_vs_torch.py` puts
//! PyTorch's beside them.
//!
//! `cargo bench --bench convolution [-- NAME]`, for those whose name contains it

#[path = "../examples/common/console.rs"]
#[macro_use]
mod console;
#[path = "convolution/shapes.rs"]
mod shapes;

use std::io::{BufRead, stdin};
use std::time::{Duration, Instant};

use burn::tensor::module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::device::memory::HostMemory;
use burn_frontier::observe::progress::Screen;
use burn_frontier::ops::convolution::{self as ours, ConvOptions, ConvTransposeOptions};
use burn_frontier::ops::gradient::seed;
use burn_frontier::{Error, Result};
use clap::Parser;
use serde::Serialize;
use serde_json::json;
use shapes::Shape;

/// Large tensors lie where those of the last run lay, as in a program.
#[global_allocator]
static MEMORY: HostMemory = HostMemory::new();

/// Times convolutions, forward and backward.
#[derive(Debug, Parser)]
struct Options {
    /// Those whose name contains this
    #[arg(default_value = "")]
    filter: String,
    /// Seconds for which each is repeated
    #[arg(long, default_value_t = 0.2)]
    time: f64,
    /// Say what is timed, then answer each line on standard input, the number of one of them, with its times and sums
    #[arg(long)]
    peer: bool,
    /// With --peer: Burn's, not ours
    #[arg(long, requires = "peer")]
    burn: bool,
    /// Cargo says it
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    console::listen(&Screen::default());
    let options = Options::parse();
    let wanted = |shape: &Shape| shape.name().contains(&options.filter);
    let shapes: Vec<Shape> = shapes::all().into_iter().filter(wanted).collect();
    if shapes.is_empty() {
        return Err(Error::config(
            format!("no convolution's name contains `{}`", options.filter),
            "leave it out: the table has all names",
        ));
    }
    // One rank, as a program has it.
    local::run(1, &LocalOptions::default(), |_| match options.peer {
        true => answer(&options, &shapes),
        false => compare(&options, &shapes),
    })?;
    Ok(())
}

/// Ours beside Burn's.
fn compare(options: &Options, shapes: &[Shape]) -> Result<()> {
    say!(
        "{:<60}{:>9}{:>9}{:>9}{:>9}",
        "ms, forward and gradients",
        "ours",
        "",
        "Burn's",
        ""
    );
    for shape in shapes {
        let (a, b) = (
            measure(shape, true, options.time)?,
            measure(shape, false, options.time)?,
        );
        let times = [a.forward, a.backward, b.forward, b.backward].map(|t| 1e3 * t);
        let times = times.map(|time| format!("{time:>9.2}")).concat();
        say!("{:<60}{times}", shape.name());
    }
    Ok(())
}

/// What benches/conv_vs_torch.py reads.
fn answer(options: &Options, shapes: &[Shape]) -> Result<()> {
    let named = shapes
        .iter()
        .map(|shape| json!({ "name": shape.name(), "shape": shape }));
    say!("{}", json!(named.collect::<Vec<_>>()));
    for line in stdin().lock().lines() {
        let line = line.map_err(|e| Error::io("read", "standard input", e))?;
        let shape = line.parse().ok().and_then(|i: usize| shapes.get(i));
        let shape = shape.ok_or_else(|| {
            Error::config(
                format!("`{line}` is no number of a convolution"),
                format!("ask for one of 0 to {}", shapes.len() - 1),
            )
        })?;
        say!("{}", json!(measure(shape, !options.burn, options.time)?));
    }
    Ok(())
}

/// Median seconds, and what result and gradients are recognised by.
#[derive(Serialize)]
struct Measured {
    forward: f64,
    backward: f64,
    sums: [Sums; 3],
}

/// The inner product with numbers of a seed's, and the Euclidean norm.
#[derive(Serialize)]
struct Sums {
    product: f64,
    norm: f64,
}

/// Element i of the numbers of a seed, between -1 and 1: as it is in benches/conv_vs_torch.py.
fn number(seed: u64, i: u64) -> f32 {
    let mixed = (i + seed * 1_000_003) * 2_654_435_761 % (1 << 32);
    let mixed = (mixed ^ (mixed >> 16)) * 73_244_475 % (1 << 32);
    (mixed >> 22) as f32 / 512.0 - 1.0
}

fn numbers<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..count).map(|i| number(seed, i)).collect();
    Tensor::from_data(
        TensorData::new(values, shape),
        (&Device::flex(), DType::F32),
    )
}

fn sums<const D: usize>(seed: u64, x: Tensor<D>) -> Result<Sums> {
    let unreadable = |e| Error::Internal(format!("cannot read a tensor: {e:?}"));
    let values = x.into_data().try_into_vec::<f32>().map_err(unreadable)?;
    let (mut product, mut square) = (0.0, 0.0);
    for (i, value) in values.into_iter().enumerate() {
        let value = f64::from(value);
        product += value * f64::from(number(seed, i as u64));
        square += value * value;
    }
    Ok(Sums {
        product,
        norm: square.sqrt(),
    })
}

fn measure(shape: &Shape, ours: bool, time: f64) -> Result<Measured> {
    match shape.input.len() {
        2 => measure_as(shape, time, |x, w| conv2d(shape, ours, x, w)),
        _ => measure_as(shape, time, |x, w| conv3d(shape, ours, x, w)),
    }
}

fn conv<const N: usize>(shape: &Shape) -> ConvOptions<N> {
    let Shape {
        stride,
        padding,
        dilation,
        groups,
        ..
    } = *shape;
    ConvOptions::new([stride; N], [padding; N], [dilation; N], groups)
}

fn transposed<const N: usize>(shape: &Shape) -> ConvTransposeOptions<N> {
    let Shape {
        stride,
        padding,
        padding_out,
        dilation,
        groups,
        ..
    } = *shape;
    ConvTransposeOptions::new(
        [stride; N],
        [padding; N],
        [padding_out; N],
        [dilation; N],
        groups,
    )
}

fn conv2d(shape: &Shape, by_us: bool, x: Tensor<4>, w: Tensor<4>) -> Result<Tensor<4>> {
    match (by_us, shape.transposed) {
        (true, false) => ours::conv2d(x, w, None, conv(shape)),
        (true, true) => ours::conv_transpose2d(x, w, None, transposed(shape)),
        (false, false) => Ok(module::conv2d(x, w, None, conv::<2>(shape))),
        (false, true) => Ok(module::conv_transpose2d(x, w, None, transposed(shape))),
    }
}

fn conv3d(shape: &Shape, by_us: bool, x: Tensor<5>, w: Tensor<5>) -> Result<Tensor<5>> {
    match (by_us, shape.transposed) {
        (true, false) => ours::conv3d(x, w, None, conv(shape)),
        (true, true) => ours::conv_transpose3d(x, w, None, transposed(shape)),
        (false, false) => Ok(module::conv3d(x, w, None, conv::<3>(shape))),
        (false, true) => Ok(module::conv_transpose3d(x, w, None, transposed(shape))),
    }
}

fn measure_as<const D: usize>(
    shape: &Shape,
    time: f64,
    convolve: impl Fn(Tensor<D>, Tensor<D>) -> Result<Tensor<D>>,
) -> Result<Measured> {
    let size = |shape: Vec<usize>| std::array::from_fn(|i| shape[i]);
    let (x, w) = (
        numbers::<D>(1, size(shape.x())),
        numbers::<D>(2, size(shape.weight())),
    );
    let forward = repeat(time, || {
        let start = Instant::now();
        let y = convolve(x.clone(), w.clone())?;
        Ok((start.elapsed(), y))
    })?;
    let y = forward.1;
    let dy = numbers(3, y.dims());
    let backward = repeat(time, || {
        let (x, w) = (
            x.clone().autodiff().require_grad(),
            w.clone().autodiff().require_grad(),
        );
        let loss = seed(convolve(x.clone(), w.clone())?, dy.clone());
        let start = Instant::now();
        let mut gradients = loss.backward();
        Ok((
            start.elapsed(),
            (x.grad_remove(&mut gradients), w.grad_remove(&mut gradients)),
        ))
    })?;
    let (Some(dx), Some(dw)) = backward.1 else {
        return Err(Error::Internal("a convolution without a gradient".into()));
    };
    Ok(Measured {
        forward: forward.0,
        backward: backward.0,
        sums: [sums(4, y)?, sums(5, dx)?, sums(6, dw)?],
    })
}

/// Median seconds of what is repeated for so long, the first time apart; and what the last time gave.
fn repeat<T>(time: f64, mut work: impl FnMut() -> Result<(Duration, T)>) -> Result<(f64, T)> {
    let (_, mut last) = work()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || start.elapsed().as_secs_f64() < time {
        let (elapsed, found) = work()?;
        times.push(elapsed.as_secs_f64());
        last = found;
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], last))
}
