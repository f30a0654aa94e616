//! Convolutions whose kernels have one tap, each place of the output on one of the input: a product of matrices an image.

use super::Convolution;
use crate::product::{Matrix, Output, PARALLEL, Size, product};

/// Sizes of such a convolution.
pub(super) struct Pointwise {
    inputs: usize,
    outputs: usize,
    pixels: usize,
}

impl Pointwise {
    /// `None` of others, and where an image is too little work for all threads.
    pub(super) fn of(convolution: &Convolution) -> Option<Self> {
        let p = &convolution.problem;
        let alone = p.groups == 1 && p.kernel == [1; 3] && p.stride == [1; 3];
        let pixels: usize = p.input.iter().product();
        let work = p.inputs.saturating_mul(p.outputs).saturating_mul(pixels);
        let some = alone && p.padding == [[0; 2]; 3] && p.batch > 0 && work >= PARALLEL;
        some.then_some(Self {
            inputs: p.inputs,
            outputs: p.outputs,
            pixels,
        })
    }

    pub(super) fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        let weight = Matrix::new(weight, self.inputs, 1);
        self.images(&weight, [self.outputs, self.inputs], x, bias, y);
    }

    pub(super) fn data_gradient(
        &self,
        dy: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        dx: &mut [f32],
    ) {
        let turned = Matrix::new(weight, 1, self.inputs);
        self.images(&turned, [self.inputs, self.outputs], dy, bias, dx);
    }

    pub(super) fn weight_gradient(&self, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
        let size = Size {
            rows: self.outputs,
            columns: self.inputs,
            depth: self.pixels,
        };
        let x = x.chunks(self.inputs * self.pixels);
        let dy = dy.chunks(self.outputs * self.pixels);
        for (image, (x, dy)) in x.zip(dy).enumerate() {
            let left = Matrix::new(dy, self.pixels, 1);
            let right = Matrix::new(x, self.pixels, 1);
            let out = Output {
                values: dweight,
                stride: self.inputs,
                add: image > 0,
            };
            product(size, &left, &right, out, None);
        }
    }

    /// Each image's channels as sums of those of another.
    fn images(
        &self,
        weight: &Matrix,
        [rows, depth]: [usize; 2],
        x: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let size = Size {
            rows,
            columns: self.pixels,
            depth,
        };
        let add = bias.map(|bias| {
            move |row: usize, _: usize, values: &mut [f32]| {
                values.iter_mut().for_each(|x| *x += bias[row]);
            }
        });
        let images = x.chunks(depth * self.pixels);
        for (x, y) in images.zip(y.chunks_mut(rows * self.pixels)) {
            let right = Matrix::new(x, 1, self.pixels);
            let out = Output {
                values: y,
                stride: self.pixels,
                add: false,
            };
            let epilogue = add.as_ref().map(|add| add as _);
            product(size, weight, &right, out, epilogue);
        }
    }
}
