//! Dropout, whose mask is computed where it is needed.

use burn::tensor::Tensor;

use super::{close, elements, open, sum_rows};
use crate::ops::problem::dropout::Dropout;
use crate::random::Philox;
use frontier_kernels_cpu::parallel::zeros;

/// A site, ready for the rows of a tensor `[batch, seq, hidden]`.
pub(super) struct Site<'a> {
    site: &'a Dropout,
    words: Philox,
    threshold: u32,
    keep: f32,
}

impl<'a> Site<'a> {
    pub fn new(site: &'a Dropout) -> Self {
        Self {
            site,
            words: site.words(),
            threshold: site.threshold(),
            keep: (1.0 / (1.0 - site.probability)) as f32,
        }
    }

    /// What is left of a row.
    #[inline(always)]
    fn drop_row(&self, row: usize, x: &[f32], out: &mut [f32]) {
        let mut random = vec![0; x.len()];
        self.site.row(self.words, row, &mut random);
        for ((out, &x), &word) in out.iter_mut().zip(x).zip(&random) {
            let factor = if word >= self.threshold {
                self.keep
            } else {
                0.0
            };
            *out = x * factor;
        }
    }
}

/// What a site, if there is one, leaves of a row of x, plus the row of `residual`, if there is one.
#[inline(always)]
pub(super) fn add_row(
    site: Option<&Site>,
    row: usize,
    (x, residual): (&[f32], Option<&[f32]>),
    out: &mut [f32],
) {
    match site {
        Some(site) => site.drop_row(row, x, out),
        None => out.copy_from_slice(x),
    }
    for (out, x) in out.iter_mut().zip(residual.unwrap_or_default()) {
        *out += x;
    }
}

/// How many elements could be read and written in the time that one and its random word take.
pub(super) const COST: usize = 4;

/// `dropout(x) + residual` of x and residual `[batch, seq, hidden]`; without a site, nothing is dropped.
pub(super) fn dropout(
    x: &Tensor<3>,
    residual: Option<&Tensor<3>>,
    site: Option<&Dropout>,
) -> Option<Tensor<3>> {
    let shape = x.dims();
    let hidden = shape[2];
    let x = open(x)?;
    let residual = match residual {
        Some(residual) => Some(open(residual)?),
        None => None,
    };
    let (x, residual) = (elements(&x), residual.as_ref().map(elements));
    let site = site.map(Site::new);
    let cost = if site.is_some() { COST } else { 1 };
    let mut y = zeros(x.len());
    sum_rows(
        [&mut y],
        [hidden, cost * hidden],
        0,
        #[inline(always)]
        |row, [y], _| {
            let own = row * hidden..(row + 1) * hidden;
            let residual = residual.map(|x| &x[own.clone()]);
            add_row(site.as_ref(), row, (&x[own], residual), y);
        },
    );
    Some(close(y, shape))
}
