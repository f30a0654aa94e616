//! The command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use burn::tensor::DType;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::catalog::{self, Size};

/// What every run says about its figures.
const MEANING: &str = "\
One kernel at one shape:
  cargo bench --bench kernels -- attention_causal --exact --shape 1x16x16x4096x128
  cargo bench --features cuda --bench kernels -- linear --exact --shape 4096x4096x16384 --dtype bf16

Columns:
  by            frontier: kernels of frontier-kernels; burn: Burn's own, or the plain path on a CPU; both: some of each
  time          median of a run, and the distance of the quartiles in percent of it
  TFLOP/s       operations that the mathematics needs; a multiply-add is two. Attention: two products forward, five
                backward (scores again), and half of each where causal. Linear and feed-forward: their products, twice as
                many backward. The others: the elementary operations of their formulas, an exponential or a root being one
  GB/s          bytes that must move at least: each input read once, each output written once
  of ceiling    the ceiling is the lower of the device's matrix-product rate and (FLOP per byte) x its copy bandwidth.
                Both were measured in this run, by Burn's own product in the same type and by its element-wise product in
                f32. Above 100 %: the data stayed in a cache, or Burn's own is not this device's best
  ours / peer   with --peer: our speed in the peer's, the same operation at the same shape and type

A backward pass is timed without the forward pass before it. Writes kernels.svg (roofline) and kernels.csv.

Shapes, by operation (the backward pass is NAME_backward):
";

/// Measures the operations of burn-frontier one by one, on any device.
#[derive(Debug, Parser)]
#[command(
    name = "kernels",
    bin_name = "cargo bench --bench kernels --",
    max_term_width = 120
)]
pub struct Options {
    /// Only kernels whose name contains this.
    pub filter: Option<String>,
    /// The filter is a kernel's whole name.
    #[arg(long, requires = "filter")]
    exact: bool,
    /// A shape instead of the usual ones, its numbers joined by x; may be given several times. See below.
    #[arg(long)]
    pub shape: Vec<Shape>,
    /// Name the kernels, their shapes on this device and what the numbers mean, and stop.
    #[arg(long)]
    pub list: bool,
    /// Tiny shapes, few runs: whether everything works, not how fast.
    #[arg(long)]
    pub quick: bool,
    /// Seconds for which each kernel is repeated, at least three times [default: 0.3 on a CPU, 0.5 on a GPU].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    time: Option<f64>,
    /// auto, cpu, wgpu, cuda or rocm, as far as compiled in; cuda:1 is one GPU of several.
    #[arg(long)]
    pub device: Option<String>,
    /// Time the plans of a GPU's kernels first, and keep the fastest of each shape in this folder.
    #[arg(long, value_name = "FOLDER")]
    pub autotune: Option<PathBuf>,
    /// Fail where this library's kernels refuse an operation, instead of measuring Burn's own.
    #[arg(long)]
    pub require_kernels: bool,
    /// Type of the tensors.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// Folder for kernels.svg and kernels.csv; relative to the workspace's root, as all paths here are.
    #[arg(long, value_name = "FOLDER", default_value = "runs/kernels")]
    pub out: PathBuf,
    /// Figures of another library, written by benches/peer.py.
    #[arg(long, value_name = "FILE")]
    pub peer: Option<PathBuf>,
    /// Cargo passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Reads the command line; ends the process at `--help` or an error.
    pub fn read() -> Self {
        let help = format!("{MEANING}{}", catalog::forms());
        let matches = Self::command().after_help(help).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Whether a kernel of this name is asked for.
    pub fn wants(&self, kernel: &str) -> bool {
        match &self.filter {
            None => true,
            Some(name) if self.exact => kernel == name,
            Some(part) => kernel.contains(part.as_str()),
        }
    }

    /// How long a kernel is repeated.
    pub fn seconds(&self, size: Size) -> Duration {
        let usual = match size {
            Size::Tiny => 0.002,
            Size::Small => 0.3,
            Size::Large => 0.5,
        };
        Duration::from_secs_f64(self.time.unwrap_or(usual))
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds, from 0 to 3600".into()),
    }
}

/// Types of floats by the names of Rust.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// The numbers of a shape, none of them zero.
#[derive(Debug, Clone)]
pub struct Shape(pub Vec<usize>);

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.parse().ok().filter(|&n: &usize| n > 0);
        let numbers: Option<Vec<usize>> = text.split('x').map(number).collect();
        numbers
            .map(Self)
            .ok_or_else(|| "give whole numbers above 0 joined by x, as in 4096x512".into())
    }
}
