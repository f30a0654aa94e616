//! The convolutions of science models that are timed.

use serde::Serialize;

/// One convolution, without bias: of as many dimensions as its input has sizes, each with the same taps, stride, padding, dilation.
#[derive(Debug, Clone, Serialize)]
pub struct Shape {
    pub model: &'static str,
    pub transposed: bool,
    pub batch: usize,
    /// In and out.
    pub channels: [usize; 2],
    pub groups: usize,
    pub input: Vec<usize>,
    pub taps: usize,
    pub stride: usize,
    pub padding: usize,
    /// Of a transposed one.
    pub padding_out: usize,
    pub dilation: usize,
}

impl Shape {
    /// Taps 3, stride 1, padding 1.
    fn new(model: &'static str, batch: usize, channels: [usize; 2], input: &[usize]) -> Self {
        Self {
            model,
            transposed: false,
            batch,
            channels,
            groups: 1,
            input: input.to_vec(),
            taps: 3,
            stride: 1,
            padding: 1,
            padding_out: 0,
            dilation: 1,
        }
    }

    fn taps(mut self, taps: usize, padding: usize) -> Self {
        (self.taps, self.padding) = (taps, padding);
        self
    }

    fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    fn dilated(mut self, dilation: usize) -> Self {
        (self.dilation, self.padding) = (dilation, dilation);
        self
    }

    fn depthwise(mut self) -> Self {
        self.groups = self.channels[0];
        self
    }

    fn transposed(mut self, padding_out: usize) -> Self {
        (self.transposed, self.padding_out) = (true, padding_out);
        self
    }

    pub fn x(&self) -> Vec<usize> {
        [&[self.batch, self.channels[0]], &self.input[..]].concat()
    }

    pub fn weight(&self) -> Vec<usize> {
        let [input, output] = self.channels;
        let mut shape = match self.transposed {
            false => vec![output, input / self.groups],
            true => vec![input, output / self.groups],
        };
        shape.extend(vec![self.taps; self.input.len()]);
        shape
    }

    pub fn name(&self) -> String {
        let sizes: Vec<String> = self.input.iter().map(usize::to_string).collect();
        let [input, output] = self.channels;
        let mut name = format!(
            "{} {} x {input}->{output}, {}, taps {}",
            self.model,
            self.batch,
            sizes.join("x"),
            self.taps
        );
        for (what, value, plain) in [
            (", stride", self.stride, 1),
            (", dilation", self.dilation, 1),
            (", groups", self.groups, 1),
        ] {
            if value != plain {
                name += &format!("{what} {value}");
            }
        }
        if self.transposed {
            name += ", transposed";
        }
        name
    }
}

/// All of them.
pub fn all() -> Vec<Shape> {
    let shape = Shape::new;
    let mut all = vec![
        shape("GAN", 32, [64, 128], &[32, 32]),
        shape("GAN", 16, [128, 256], &[16, 16]).taps(4, 1).stride(2),
        shape("GAN", 100, [1, 16], &[28, 28]).stride(2),
        shape("GAN", 100, [16, 32], &[14, 14]).stride(2),
        shape("GAN", 100, [128, 128], &[28, 28]),
        shape("GAN", 100, [128, 64], &[28, 28]),
    ];
    let down = [(3, 64, 64), (64, 128, 32), (128, 256, 16), (256, 512, 8)];
    all.extend(down.map(|(input, output, size)| {
        shape("DC-GAN", 32, [input, output], &[size; 2])
            .taps(4, 1)
            .stride(2)
    }));
    all.push(
        shape("DC-GAN", 32, [100, 512], &[1, 1])
            .taps(4, 0)
            .transposed(0),
    );
    let up = [(512, 256, 4), (256, 128, 8), (128, 64, 16), (64, 3, 32)];
    all.extend(up.map(|(input, output, size)| {
        let shape = shape("DC-GAN", 32, [input, output], &[size; 2]);
        shape.taps(4, 1).stride(2).transposed(0)
    }));
    let depthwise =
        |channels, size: [usize; 2]| shape("DeepCAM", 2, [channels; 2], &size).depthwise();
    all.extend([
        shape("DeepCAM", 2, [16, 32], &[384, 576]).stride(2),
        depthwise(128, [96, 144]),
        depthwise(128, [96, 144]).stride(2),
        depthwise(728, [24, 36]).dilated(2),
        shape("DeepCAM", 2, [728, 728], &[24, 36]).taps(1, 0),
    ]);
    all.extend([6, 12, 18].map(|d| shape("DeepCAM", 2, [256, 256], &[24, 36]).dilated(d)));
    let cosmo = [(4, 32, 32), (32, 64, 16), (64, 128, 8), (128, 256, 4)];
    all.extend(
        cosmo.map(|(input, output, size)| shape("CosmoFlow", 4, [input, output], &[size; 3])),
    );
    all.push(shape("CosmoFlow", 1, [4, 32], &[64; 3]));
    all.extend([
        shape("VAE", 4, [4, 16], &[32; 3]).stride(2),
        shape("VAE", 4, [16, 32], &[16; 3]).stride(2),
        shape("VAE", 4, [32, 16], &[8; 3]).stride(2).transposed(1),
        shape("VAE", 4, [16, 4], &[16; 3]).stride(2).transposed(1),
    ]);
    all
}
