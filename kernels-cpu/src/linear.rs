//! Linear layers and what is between two of them: bias and GELU are added as soon as a row of the product is complete.

use crate::element::Element;
use crate::math::{exp, vectorised};
use crate::parallel::{Shared, for_tasks};
use crate::product::{Operand, Size};

/// sqrt(2 / pi).
const SCALE: f32 = 0.797_884_6;
/// Factor on the cube in GELU's tanh form.
const CUBIC: f32 = 0.044_715;

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// GELU in its tanh form over x, `(1 + tanh u) / 2` of `u = scale (x + cubic x^3)`, which is the sigmoid of `2 u`.
#[inline(always)]
fn gate(x: f32) -> f32 {
    sigmoid(2.0 * SCALE * x * (1.0 + CUBIC * x * x))
}

/// GELU in its tanh form (arXiv 1606.08415).
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * gate(x)
}

/// GELU and its derivative.
#[inline(always)]
pub fn gelu_and_slope(x: f32) -> (f32, f32) {
    let s = gate(x);
    let inner = 2.0 * SCALE * (1.0 + 3.0 * CUBIC * x * x);
    (x * s, s + x * s * (1.0 - s) * inner)
}

#[inline(always)]
fn add<E: Element>(values: &mut [f32], x: &[E]) {
    for (sum, x) in values.iter_mut().zip(x) {
        *sum += x.widen();
    }
}

/// `y = x W + b`, y `[rows, columns]`.
///
/// # Panics
/// If y or the bias is too short.
pub fn linear<E: Element>(
    size: Size,
    operands: [&dyn Operand; 2],
    bias: Option<&[E]>,
    y: &mut [E],
) {
    let add_bias = bias.map(|bias| {
        move |_, first: usize, values: &mut [f32]| {
            vectorised(
                #[inline(always)]
                || add(values, &bias[first..]),
            );
        }
    });
    E::product(size, operands, y, add_bias.as_ref().map(|add| add as _));
}

/// `argument = x W + b` and `value = gelu(argument)`, `[rows, columns]` each.
///
/// # Panics
/// If a slice is too short.
pub fn linear_gelu<E: Element>(
    size: Size,
    operands: [&dyn Operand; 2],
    bias: Option<&[E]>,
    [argument, value]: [&mut [E]; 2],
) {
    let value = Shared::new(value);
    let epilogue = |row: usize, first: usize, values: &mut [f32]| {
        #[expect(unsafe_code, reason = "a second matrix is written beside the product")]
        // SAFETY: pieces of the product do not overlap, and this is the same piece of a matrix of the same shape.
        let out = unsafe { value.range(row * size.columns + first, values.len()) };
        vectorised(
            #[inline(always)]
            || {
                add(values, bias.map_or(&[], |bias| &bias[first..]));
                for (y, x) in out.iter_mut().zip(values.iter()) {
                    // Of the argument as it is kept.
                    *y = E::round(gelu(E::round(*x).widen()));
                }
            },
        );
    };
    E::product(size, operands, argument, Some(&epilogue));
}

/// The gradient of GELU's argument, `(g W^T) gelu'(argument)`, `[rows, columns]` as the argument, which becomes GELU's value.
///
/// # Panics
/// If a slice is too short.
pub fn gelu_gradient<E: Element>(
    size: Size,
    operands: [&dyn Operand; 2],
    argument: &mut [E],
    gradient: &mut [E],
) {
    let argument = Shared::new(argument);
    let epilogue = |row: usize, first: usize, values: &mut [f32]| {
        #[expect(unsafe_code, reason = "a second matrix is written beside the product")]
        // SAFETY: pieces of the product do not overlap, and this is the same piece of a matrix of the same shape.
        let argument = unsafe { argument.range(row * size.columns + first, values.len()) };
        vectorised(
            #[inline(always)]
            || {
                for (g, x) in values.iter_mut().zip(argument.iter_mut()) {
                    let (value, slope) = gelu_and_slope(x.widen());
                    *g *= slope;
                    *x = E::round(value);
                }
            },
        );
    };
    E::product(size, operands, gradient, Some(&epilogue));
}

/// Sums of the columns of x `[rows, sums.len()]`, added to `sums`.
pub fn column_sums<E: Element>(x: &[E], sums: &mut [f32]) {
    /// Columns of a task.
    const COLUMNS: usize = 64;
    /// Rows whose sum is added to that of the rows before.
    const ROWS: usize = 64;
    /// Elements that are worth another thread.
    const PARALLEL: usize = 1 << 16;
    let (width, parallel) = (sums.len(), x.len() >= PARALLEL);
    let sums = Shared::new(sums);
    for_tasks(width.div_ceil(COLUMNS), parallel, |task| {
        let first = task * COLUMNS;
        let count = COLUMNS.min(width - first);
        #[expect(unsafe_code, reason = "tasks write parts of a slice")]
        // SAFETY: tasks have different columns.
        let sums = unsafe { sums.range(first, count) };
        vectorised(
            #[inline(always)]
            || {
                for rows in x.chunks(ROWS * width) {
                    let mut partial = [0.0; COLUMNS];
                    for row in rows.chunks_exact(width) {
                        add(&mut partial, &row[first..first + count]);
                    }
                    add(sums, &partial);
                }
            },
        );
    });
}
