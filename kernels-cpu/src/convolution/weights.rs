//! The gradient of the kernels: what an element of the kernel meets, times the output's gradient, over all places.

use std::ops::Range;

use super::Convolution;
use super::gather::{Gathered, Step, for_columns, multiply, width};
use super::images::{PARALLEL, even, part, strips_pay};
use super::pass::{Cut, Pass, Piece};
use super::strips::{Lines, dots};
use crate::parallel::{Shared, for_tasks, with_scratch};
use crate::product::{Matrix, Operand};

/// Places of a piece, which are summed over at a time.
const PLACES: usize = 256;
/// Elements of kernels, those of all its channels, that a task has; and channels of the output.
const ROWS: usize = 384;
const COLUMNS: usize = 128;
/// Tasks that are enough. The number of partial sums follows from it, so it is the same for every number of threads.
const TASKS: usize = 8;

/// A depthwise convolution's pieces: of one channel, of strips.
const STRIPS: usize = 4096;

struct Plan<'a> {
    of: &'a Convolution,
    x: &'a [f32],
    dy: &'a [f32],
    cut: Cut<'a>,
    /// Channels of a group's input and output.
    channels: [usize; 2],
    /// Of these, what a task has.
    some: [usize; 2],
    /// Whether strips of places are vectors, or channels of the output are.
    in_strips: bool,
    lanes: usize,
    /// Partial sums.
    parts: usize,
}

/// What a task computes: elements of the kernels.
struct Task {
    group: usize,
    /// Of the group's channels.
    inputs: Range<usize>,
    outputs: Range<usize>,
    part: usize,
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
        for_tasks(tasks, parallel, |i| plan.compute(&plan.task(i, 0), to, 0));
        return;
    }
    let len = to.len();
    with_scratch(plan.parts * len, |sums| {
        let all = Shared::new(sums);
        for_tasks(tasks * plan.parts, parallel, |i| {
            let task = plan.task(i / plan.parts, i % plan.parts);
            plan.compute(&task, all, task.part * len);
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
        let lanes = width();
        let in_strips = channels[0] == 1 && strips_pay(channels[1], of.output()[2], lanes);
        let some = [
            even(channels[0], ROWS / pass.taps()),
            even(channels[1], COLUMNS).next_multiple_of(lanes),
        ];
        let places = if in_strips { STRIPS } else { PLACES };
        let mut plan = Self {
            of,
            x,
            dy,
            cut: Cut::new(pass, [p.batch, some[0], places], pass.count, in_strips),
            channels,
            some,
            in_strips,
            lanes,
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

    fn task(&self, number: usize, part: usize) -> Task {
        let [rows, columns] = [0, 1].map(|i| self.channels[i].div_ceil(self.some[i]));
        let range = |i: usize, at: usize| {
            let start = at * self.some[i];
            start..(start + self.some[i]).min(self.channels[i])
        };
        Task {
            group: number / columns / rows,
            inputs: range(0, number / columns % rows),
            outputs: range(1, number % columns),
            part,
        }
    }

    /// The channels of the output that are summed together, of the tensor's.
    fn panels(&self, task: &Task) -> Vec<Range<usize>> {
        let each = if self.in_strips { 1 } else { self.lanes };
        let first = task.group * self.channels[1];
        let panel = |start: usize| first + start..first + (start + each).min(task.outputs.end);
        task.outputs.clone().step_by(each).map(panel).collect()
    }

    fn compute(&self, task: &Task, to: Shared, offset: usize) {
        let panels = self.panels(task);
        let each = task.inputs.len() * self.cut.pass.taps() * self.lanes;
        let right = match self.in_strips {
            true => 0,
            false => self.cut.places.len() * self.lanes,
        };
        let lens = [
            panels.len() * each,
            self.cut.staged(task.inputs.len()) + self.lanes,
            right,
        ];
        with_scratch(lens.iter().sum(), |scratch| {
            let (sums, rest) = scratch.split_at_mut(lens[0]);
            let (staged, right) = rest.split_at_mut(lens[1]);
            sums.fill(0.0);
            for piece in self.pieces(task.part).map(|i| self.cut.piece(i)) {
                let first = task.group * self.channels[0];
                let inputs = first + task.inputs.start..first + task.inputs.end;
                let images = (self.x, self.of.problem().inputs);
                self.cut.stage(&piece, images, inputs, staged);
                for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(each)) {
                    match self.in_strips {
                        true => self.add_strips(&piece, panel.start, staged, sums),
                        false => self.add_places(&piece, panel.clone(), staged, right, sums),
                    }
                }
            }
            for (panel, sums) in panels.iter().zip(sums.chunks_exact(each)) {
                self.write(task, panel, sums, to, offset);
            }
        });
    }

    /// Adds what a piece gives to the sums of a panel's channels, `[rows, lanes]`; `right` is memory for their gradient.
    fn add_places(
        &self,
        piece: &Piece,
        panel: Range<usize>,
        staged: &[f32],
        right: &mut [f32],
        sums: &mut [f32],
    ) {
        let right = &mut right[..piece.len() * self.lanes];
        self.pack(piece, panel, right);
        let places = self.cut.places[..piece.len()].iter().enumerate();
        let depth: Vec<_> = places.map(|(right, &left)| Step { left, right }).collect();
        let left = Gathered {
            values: staged,
            rows: &self.cut.depth[..sums.len() / self.lanes],
            depth: &depth,
        };
        multiply(left, right, sums, true);
    }

    /// Adds what a piece gives to the sums of a channel, `[elements of the kernel, lanes]`.
    fn add_strips(&self, piece: &Piece, channel: usize, staged: &[f32], sums: &mut [f32]) {
        let pixels: usize = self.of.output().iter().product();
        let line = self.cut.pass.count[2];
        let count = piece.len() / piece.images.len();
        let starts = self.cut.strips(line);
        let images = self.gradients(piece).zip(starts.chunks_exact(count / line));
        for (image, starts) in images {
            let right = &image[channel * pixels..][..count];
            let lines = Lines {
                values: staged,
                starts,
                line,
            };
            dots(lines, &self.cut.depth, right, sums);
        }
    }

    /// Writes the sums of a panel's channels.
    fn write(&self, task: &Task, panel: &Range<usize>, sums: &[f32], to: Shared, offset: usize) {
        let taps = self.cut.pass.taps();
        let start = |channel: usize| {
            offset + ((panel.start + channel) * self.channels[0] + task.inputs.start) * taps
        };
        if self.in_strips {
            for (row, lanes) in sums.chunks_exact(self.lanes).enumerate() {
                let at = start(0) + row;
                part(to, at..at + 1)[0] = lanes.iter().sum();
            }
            return;
        }
        let order: Vec<_> = (0..task.inputs.len() * taps).collect();
        for_columns(sums, &order, panel.len(), |column, row, values| {
            let at = start(column) + row;
            part(to, at..at + values.len()).copy_from_slice(values);
        });
    }

    /// The gradient at a piece's places of each of its images, which are neighbours.
    fn gradients(&self, piece: &Piece) -> impl Iterator<Item = &[f32]> {
        let [_, height, line] = self.of.output();
        let pixels: usize = self.of.output().iter().product();
        let [planes, lines, widths] = &piece.places;
        let start = (planes.start * height + lines.start) * line + widths.start;
        let outputs = self.of.problem().outputs;
        let image = move |n: usize| &self.dy[n * outputs * pixels + start..];
        piece.images.clone().map(image)
    }

    /// Packs the gradient of a panel's channels: `[places, lanes]`.
    fn pack(&self, piece: &Piece, channels: Range<usize>, to: &mut [f32]) {
        let pixels: usize = self.of.output().iter().product();
        let count = piece.len() / piece.images.len();
        let images = self.gradients(piece);
        for (image, to) in images.zip(to.chunks_exact_mut(count * self.lanes)) {
            let matrix = Matrix::new(image, pixels, 1);
            matrix.pack(channels.clone(), 0..count, self.lanes, to);
        }
    }
}
