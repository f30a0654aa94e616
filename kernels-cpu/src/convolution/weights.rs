//! The gradient of the kernels: what an element of the kernel meets, times the output's gradient, over all places.

use std::ops::Range;

use super::Convolution;
use super::gather::{Gathered, Step, for_columns, multiply, width};
use super::images::PARALLEL;
use super::pass::{Cut, Pass, Piece};
use crate::parallel::{Shared, for_tasks, with_scratch};
use crate::product::{Matrix, Operand};

/// Places of a piece, which are summed over at a time.
const PLACES: usize = 256;
/// Elements of kernels, those of all its channels, that a task has; and channels of the output.
const ROWS: usize = 384;
const COLUMNS: usize = 128;
/// Tasks that are enough. The number of partial sums follows from it, so it is the same for every number of threads.
const TASKS: usize = 8;

struct Plan<'a> {
    of: &'a Convolution,
    x: &'a [f32],
    dy: &'a [f32],
    cut: Cut<'a>,
    /// Channels of a group's input and output.
    channels: [usize; 2],
    /// Of these, what a task has.
    some: [usize; 2],
    /// Partial sums.
    parts: usize,
}

/// Writes the gradient of the kernels.
pub(super) fn gradient(of: &Convolution, x: &[f32], dy: &[f32], to: &mut [f32]) {
    let pass = Pass::over_input(of);
    let plan = Plan::new(of, &pass, x, dy);
    let pixels: usize = of.problem().batch * of.output().iter().product::<usize>();
    let parallel = pixels.saturating_mul(to.len()) >= PARALLEL;
    let tasks = plan.tasks();
    if plan.parts == 1 {
        let to = Shared::new(to);
        for_tasks(tasks, parallel, |i| plan.compute(i, 0, to, 0));
        return;
    }
    let len = to.len();
    with_scratch(plan.parts * len, |sums| {
        let all = Shared::new(sums);
        for_tasks(tasks * plan.parts, parallel, |i| {
            let part = i % plan.parts;
            plan.compute(i / plan.parts, part, all, part * len);
        });
        let sums = &*sums;
        to.copy_from_slice(&sums[..len]);
        for part in sums.chunks_exact(len.max(1)).skip(1) {
            for (to, x) in to.iter_mut().zip(part) {
                *to += x;
            }
        }
    });
}

impl<'a> Plan<'a> {
    fn new(of: &'a Convolution, pass: &'a Pass, x: &'a [f32], dy: &'a [f32]) -> Self {
        let p = of.problem();
        let channels = [p.inputs / p.groups, p.outputs / p.groups];
        let even = |count: usize, most: usize| {
            let parts = count.div_ceil(most.max(1));
            count.div_ceil(parts.max(1)).max(1)
        };
        let some = [
            even(channels[0], ROWS / pass.taps()),
            even(channels[1], COLUMNS),
        ];
        let some = [some[0], some[1].next_multiple_of(width())];
        let mut plan = Self {
            of,
            x,
            dy,
            cut: Cut::new(pass, p.batch, some[0], PLACES, false),
            channels,
            some,
            parts: 1,
        };
        let parts = TASKS / plan.tasks().max(1);
        plan.parts = parts.clamp(1, plan.cut.pieces().max(1));
        plan
    }

    /// Without partial sums.
    fn tasks(&self) -> usize {
        let [rows, columns] = [0, 1].map(|i| self.channels[i].div_ceil(self.some[i]));
        self.of.problem().groups * rows * columns
    }

    /// The pieces of one partial sum.
    fn pieces(&self, part: usize) -> Range<usize> {
        let count = self.cut.pieces();
        part * count / self.parts..(part + 1) * count / self.parts
    }

    fn compute(&self, task: usize, part: usize, to: Shared, offset: usize) {
        let p = self.of.problem();
        let taps = self.cut.pass.taps();
        let [rows, columns] = [0, 1].map(|i| self.channels[i].div_ceil(self.some[i]));
        let group = task / columns / rows;
        let range = |i: usize, at: usize| {
            let start = at * self.some[i];
            start..(start + self.some[i]).min(self.channels[i])
        };
        let (inputs, outputs) = (range(0, task / columns % rows), range(1, task % columns));
        let width = width();
        let rows = inputs.len() * taps;
        let panels = outputs.len().div_ceil(width);
        let panel = |i: usize| {
            let start = outputs.start + i * width;
            start..(start + width).min(outputs.end)
        };
        let lens = [
            panels * width * rows,
            self.cut.staged(inputs.len()),
            width * self.cut.places.len(),
        ];
        with_scratch(lens.iter().sum(), |scratch| {
            let (sums, rest) = scratch.split_at_mut(lens[0]);
            let (staged, right) = rest.split_at_mut(lens[1]);
            sums.fill(0.0);
            let places = self.cut.places.iter().enumerate();
            let depth: Vec<_> = places.map(|(right, &left)| Step { left, right }).collect();
            let order: Vec<_> = (0..rows).collect();
            for piece in self.pieces(part).map(|i| self.cut.piece(i)) {
                let first = group * self.channels[0] + inputs.start;
                let some = first..first + inputs.len();
                self.cut.stage(&piece, (self.x, p.inputs), some, staged);
                let left = Gathered {
                    values: staged,
                    rows: &self.cut.depth[..rows],
                    depth: &depth[..piece.len()],
                };
                for i in 0..panels {
                    let right = &mut right[..piece.len() * width];
                    let channels = panel(i);
                    let first = group * self.channels[1] + channels.start;
                    self.pack(&piece, first..first + channels.len(), width, right);
                    let out = &mut sums[i * width * rows..][..rows * width];
                    multiply(left, right, out, true);
                }
            }
            for i in 0..panels {
                let sums = &sums[i * width * rows..][..rows * width];
                let first = group * self.channels[1] + panel(i).start;
                for_columns(sums, &order, panel(i).len(), |column, row, values| {
                    let kernel = (first + column) * self.channels[0] + inputs.start;
                    write(to, offset + kernel * taps + row, values);
                });
            }
        });
    }

    /// Packs the gradient of a panel's channels: `[places, width]`.
    fn pack(&self, piece: &Piece, channels: Range<usize>, width: usize, to: &mut [f32]) {
        let [_, height, line] = self.of.output();
        let pixels: usize = self.of.output().iter().product();
        let [planes, lines, widths] = &piece.places;
        // Places of an image that belong to a piece are neighbours.
        let start = (planes.start * height + lines.start) * line + widths.start;
        let count = piece.len() / piece.images.len();
        for (n, to) in piece.images.clone().zip(to.chunks_exact_mut(count * width)) {
            let image = &self.dy[n * self.of.problem().outputs * pixels..];
            Matrix::new(image, pixels, 1).pack(channels.clone(), start..start + count, width, to);
        }
    }
}

#[expect(unsafe_code, reason = "tasks write blocks of the kernels")]
fn write(to: Shared, start: usize, values: &[f32]) {
    // SAFETY: each partial sum of each element is one task's, which writes one piece at a time.
    unsafe { to.range(start, values.len()) }.copy_from_slice(values);
}
