//! Digits of 28 x 28 pixels: drawn here, each a function of its number, or real ones where the MNIST files lie.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_frontier::pipeline::stage::Batch;
use burn_frontier::random::Stream;

pub const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;

/// Where digits come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Strokes of a seven-segment display, moved and blurred by noise.
    Drawn,
    /// MNIST: pixels and labels.
    Mnist(Arc<(Vec<u8>, Vec<u8>)>),
}

/// Digits that go through a model together.
#[derive(Debug, Clone)]
pub struct Digits {
    /// `[samples, 1, 28, 28]`, in 0..=1.
    pub pixels: Tensor<4>,
    /// `[samples]`
    pub labels: Tensor<1, Int>,
    /// Their places in the global batch.
    pub places: Vec<u64>,
}

impl Batch for Digits {
    fn count(&self) -> u64 {
        self.places.len() as u64
    }

    fn samples(&self) -> &[u64] {
        &self.places
    }
}

impl Source {
    /// Real digits, where they lie beside the repository and gzip can unpack them.
    pub fn mnist() -> Option<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/mnist");
        let read = |name: &str, header: usize| {
            let mut gzip = Command::new("gzip");
            let output = gzip.arg("-dc").arg(folder.join(name)).output().ok()?;
            let bytes = output.stdout;
            (output.status.success() && bytes.len() > header).then(|| bytes[header..].to_vec())
        };
        // idx: a magic number and the sizes, of four bytes each.
        let pixels = read("t10k-images-idx3-ubyte.gz", 16)?;
        let labels = read("t10k-labels-idx1-ubyte.gz", 8)?;
        assert_eq!(pixels.len(), PIXELS * labels.len());
        Some(Self::Mnist(Arc::new((pixels, labels))))
    }

    /// The digits with the numbers `first + place`.
    pub fn batch(&self, first: u64, places: Vec<u64>) -> Digits {
        let device = Device::flex();
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for place in &places {
            let (label, picture) = self.digit(first + place);
            labels.push(label);
            pixels.extend(picture);
        }
        let n = places.len();
        Digits {
            pixels: Tensor::from_data(TensorData::new(pixels, [n, 1, SIDE, SIDE]), &device),
            labels: Tensor::from_data(TensorData::new(labels, [n]), &device),
            places,
        }
    }

    fn digit(&self, number: u64) -> (i64, Vec<f32>) {
        match self {
            Self::Drawn => drawn(number),
            Self::Mnist(files) => {
                let (pixels, labels) = &**files;
                let i = number as usize % labels.len();
                let picture = &pixels[i * PIXELS..][..PIXELS];
                let picture = picture.iter().map(|&p| f32::from(p) / 255.0);
                (i64::from(labels[i]), picture.collect())
            }
        }
    }
}

/// The segments of 0 to 9: top, upper left, upper right, middle, lower left, lower right, bottom.
const SEGMENTS: [[u8; 7]; 10] = [
    [1, 1, 1, 0, 1, 1, 1],
    [0, 0, 1, 0, 0, 1, 0],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 1, 1, 0, 1, 1],
    [0, 1, 1, 1, 0, 1, 0],
    [1, 1, 0, 1, 0, 1, 1],
    [1, 1, 0, 1, 1, 1, 1],
    [1, 0, 1, 0, 0, 1, 0],
    [1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 0, 1, 1],
];

/// Where each segment begins, and how large it is: row, column, height, width.
const STROKES: [[usize; 4]; 7] = [
    [4, 9, 2, 10],
    [4, 8, 9, 2],
    [4, 18, 9, 2],
    [12, 9, 2, 10],
    [13, 8, 9, 2],
    [13, 18, 9, 2],
    [21, 9, 2, 10],
];

fn drawn(number: u64) -> (i64, Vec<f32>) {
    let mut noise = vec![0.0f32; PIXELS + 3];
    Stream::new(7, number, "digit").uniform(0, &mut noise);
    let [digit, down, right] = [10.0, 5.0, 7.0].map(|n| noise.pop().unwrap_or(0.0) * n);
    let (digit, down, right) = (digit as usize, down as usize, right as usize);
    let mut picture: Vec<f32> = noise.iter().map(|x| 0.2 * x).collect();
    for ([row, column, height, width], _) in STROKES
        .iter()
        .zip(SEGMENTS[digit])
        .filter(|(_, on)| *on == 1)
    {
        for y in *row..row + height {
            for x in *column..column + width {
                // Up to 4 down and 6 right of a place that leaves as much room.
                picture[(y + down) * SIDE + x + right - 4] += 0.8;
            }
        }
    }
    (digit as i64, picture)
}
