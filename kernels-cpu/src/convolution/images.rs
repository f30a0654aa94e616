//! Forward and data gradient: images from images.

mod single;
mod write;

use std::ops::Range;

use super::gather::{self, Gathered, Step};
use super::pass::{Class, Cut, Pass, Piece};
use super::{Convolution, Problem, strips};
use crate::parallel::{Shared, for_tasks, threads, with_scratch};
use crate::product::{Matrix, Operand};
use write::Written;

/// What the depth, channels and elements of the kernel, is cut into.
const DEPTH: usize = 256;
/// Depth from which on it pays to skip the padding that a place meets.
const DEEP: usize = 512;
/// Places of a piece, at least and at most.
const PLACES: [usize; 2] = [256, 512];
/// Where they are strips, and few channels are read.
const STRIPS: [usize; 2] = [512, 8192];
/// At most, where one channel is read for each.
const LINES: usize = 3072;

/// Which channels are read and written, and how the kernels are to be read for that.
pub(super) struct Job<'a> {
    pub batch: usize,
    pub groups: usize,
    /// Channels of a group that are read, and written.
    pub channels: [usize; 2],
    /// In the kernels: from one of a group's channels to the next, of those read and written.
    pub steps: [usize; 2],
    /// From one group's kernels to the next.
    pub group: usize,
    pub kernel: [usize; 3],
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub image: &'a [f32],
    /// Size of an image that is written.
    pub target: [usize; 3],
}

impl<'a> Job<'a> {
    pub fn forward(
        of: &Convolution,
        x: &'a [f32],
        weight: &'a [f32],
        bias: Option<&'a [f32]>,
    ) -> Self {
        let (p, [inputs, outputs, taps]) = sizes(of);
        Self {
            batch: p.batch,
            groups: p.groups,
            channels: [inputs, outputs],
            steps: [taps, inputs * taps],
            group: outputs * inputs * taps,
            kernel: p.kernel,
            weight,
            bias,
            image: x,
            target: of.output(),
        }
    }

    pub fn data_gradient(
        of: &Convolution,
        dy: &'a [f32],
        weight: &'a [f32],
        bias: Option<&'a [f32]>,
    ) -> Self {
        let (p, [inputs, outputs, taps]) = sizes(of);
        Self {
            channels: [outputs, inputs],
            steps: [inputs * taps, taps],
            image: dy,
            target: p.input,
            ..Self::forward(of, dy, weight, bias)
        }
    }

    /// Writes all that the passes give.
    pub fn run(&self, passes: &[Pass], to: &mut [f32]) {
        let work = |pass: &Pass| pass.taps() * pass.count.iter().product::<usize>();
        let work: usize = passes.iter().map(work).sum();
        let parallel =
            work * self.batch * self.groups * self.channels[0] * self.channels[1] >= PARALLEL;
        let count = [0, 1, 2].map(|i| passes.iter().map(|pass| pass.count[i]).max().unwrap_or(0));
        // One way for all passes, so that their panels are the same.
        let lanes = gather::width();
        let in_strips = strips_pay(self.channels[1], count[2], lanes);
        let plan = |pass| Plan::new(self, pass, count, in_strips);
        let plans: Vec<Plan> = passes.iter().map(plan).collect();
        let packed: usize = plans.iter().map(|plan| plan.packed()).sum();
        with_scratch(packed, |scratch| {
            let mut start = 0;
            for plan in &plans {
                plan.pack(&mut scratch[start..start + plan.packed()], parallel);
                start += plan.packed();
            }
            let scratch = &*scratch;
            let to = Shared::new(to);
            let tasks = self.tasks(&plans);
            for_tasks(tasks.len(), parallel, |i| {
                if plans.iter().all(Plan::single) {
                    return self.compute_single(&plans, &tasks[i], scratch, to);
                }
                let mut rest = scratch;
                for plan in &plans {
                    let (packed, after) = rest.split_at(plan.packed());
                    plan.compute(&tasks[i], packed, to);
                    rest = after;
                }
            });
        });
    }

    /// Pieces and groups; where there are few, of some of the panels each. A task does all passes of a piece, which write to the same
    /// lines.
    fn tasks(&self, plans: &[Plan]) -> Vec<Task> {
        let Some(plan) = plans.first() else {
            return Vec::new();
        };
        let (pieces, panels) = (plan.cut.pieces(), plan.panels);
        let parts = (4 * threads()).div_ceil((pieces * self.groups).max(1));
        let some = panels.div_ceil(parts.min(panels).max(1)).max(1);
        let mut all = Vec::new();
        // Pieces of a plane, which share lines, one after the other.
        for group in 0..self.groups {
            for piece in 0..pieces {
                let parts = (0..panels).step_by(some);
                all.extend(parts.map(|first| Task {
                    piece,
                    group,
                    panels: first..(first + some).min(panels),
                }));
            }
        }
        all
    }
}

/// Multiplications that are worth another thread.
pub(super) const PARALLEL: usize = 1 << 17;

fn sizes(of: &Convolution) -> (&Problem, [usize; 3]) {
    let p = of.problem();
    (
        p,
        [
            p.inputs / p.groups,
            p.outputs / p.groups,
            p.kernel.iter().product(),
        ],
    )
}

struct Task {
    piece: usize,
    group: usize,
    panels: Range<usize>,
}

/// Parts of at most that size, as even as can be.
pub(super) fn even(count: usize, most: usize) -> usize {
    let parts = count.div_ceil(most.max(1));
    count.div_ceil(parts.max(1)).max(1)
}

/// Whether more lanes are filled by places of a line than by channels.
pub(super) fn strips_pay(channels: usize, line: usize, lanes: usize) -> bool {
    channels * line.next_multiple_of(lanes) < channels.next_multiple_of(lanes) * line
}

/// One pass of a job.
struct Plan<'a> {
    job: &'a Job<'a>,
    cut: Cut<'a>,
    /// Whether strips of places are vectors, or the channels of a panel are.
    in_strips: bool,
    strips: Vec<usize>,
    lanes: usize,
    /// Channels that are written together: those of a panel of the kernels.
    width: usize,
    panels: usize,
    /// Channels that are summed over at a time.
    chunk: usize,
}

impl<'a> Plan<'a> {
    fn new(job: &'a Job<'a>, pass: &'a Pass, count: [usize; 3], in_strips: bool) -> Self {
        let channels = job.channels[0];
        let most = (DEPTH / pass.taps().max(1)).max(1);
        let chunk = even(channels, most);
        let lanes = gather::width();
        let width = match in_strips {
            true => even(job.channels[1], strips::CHANNELS),
            false => lanes,
        };
        let all = job.batch * job.groups * count.iter().product::<usize>();
        let [least, most] = if in_strips { STRIPS } else { PLACES };
        let most = (most / even(channels, DEPTH)).max(PLACES[1]);
        // What is staged, and sums, fit into the nearest cache.
        let most = if job.channels == [1; 2] { LINES } else { most };
        let places = (all / (4 * threads())).clamp(least, most);
        let cut = Cut::new(pass, [job.batch, chunk, places], count, in_strips);
        Self {
            job,
            in_strips,
            strips: cut.strips(lanes),
            cut,
            lanes,
            width,
            panels: job.channels[1].div_ceil(width),
            chunk,
        }
    }

    fn group(&self) -> usize {
        self.panels * self.width * self.job.channels[0] * self.cut.pass.taps()
    }

    /// The channels of a panel.
    fn channels(&self, panel: usize) -> Range<usize> {
        let start = panel * self.width;
        start..(start + self.width).min(self.job.channels[1])
    }

    /// Elements of its kernels, as they are packed.
    fn packed(&self) -> usize {
        self.job.groups * self.group()
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let channels = self.job.channels[0];
        let chunk = move |first: usize| first..(first + self.chunk).min(channels);
        (0..channels).step_by(self.chunk.max(1)).map(chunk)
    }

    /// Where a panel of a chunk is: a group after the other, a chunk after the other, a panel after the other.
    fn place(&self, group: usize, chunk: &Range<usize>, panel: usize) -> Range<usize> {
        let taps = self.cut.pass.taps();
        let start = group * self.group()
            + (chunk.start * self.panels + panel * chunk.len()) * taps * self.width;
        start..start + chunk.len() * taps * self.width
    }

    /// Packs the kernels: each panel `[channels that are read, taps, channels that are written]`.
    fn pack(&self, to: &mut [f32], parallel: bool) {
        let job = self.job;
        let elements = self.cut.pass.elements(job.kernel);
        // Then a row of the kernels is a row of a matrix.
        let in_order = elements
            .iter()
            .enumerate()
            .all(|(i, &element)| i == element);
        let chunks: Vec<_> = self.chunks().collect();
        let to = Shared::new(to);
        for_tasks(job.groups * chunks.len(), parallel, |i| {
            let (group, chunk) = (i / chunks.len(), &chunks[i % chunks.len()]);
            for panel in 0..self.panels {
                let channels = self.channels(panel);
                let place = self.place(group, chunk, panel);
                let to = part(to, place);
                if in_order {
                    let matrix = Matrix::new(&job.weight[group * job.group..], job.steps[1], 1);
                    let lines = to.chunks_exact_mut(self.width * elements.len().max(1));
                    for (channel, to) in chunk.clone().zip(lines) {
                        let start = channel * job.steps[0];
                        let depth = start..start + elements.len();
                        matrix.pack(channels.clone(), depth, self.width, to);
                    }
                    continue;
                }
                let mut rows = to.chunks_exact_mut(self.width);
                for channel in chunk.clone() {
                    let start = group * job.group + channel * job.steps[0];
                    for (element, row) in elements.iter().zip(&mut rows) {
                        for (x, out) in row.iter_mut().zip(channels.clone()) {
                            *x = job.weight[start + element + out * job.steps[1]];
                        }
                        row[channels.len()..].fill(0.0);
                    }
                }
            }
        });
    }

    fn compute(&self, task: &Task, packed: &[f32], to: Shared) {
        let piece = self.cut.piece(task.piece);
        if piece.len() == 0 {
            return;
        }
        let parts = self.parts(&piece);
        let each = self.width * parts.iter().map(|part| part.rows.len()).sum::<usize>();
        let each = if self.in_strips {
            each * self.lanes
        } else {
            each
        };
        let (sums, staged) = (task.panels.len() * each, self.cut.staged(self.chunk));
        let channels = self.job.channels[0];
        with_scratch(sums + staged + self.lanes, |scratch| {
            let (sums, staged) = scratch.split_at_mut(sums);
            for chunk in self.chunks() {
                let first = task.group * channels;
                let images = (self.job.image, self.job.groups * channels);
                let some = first + chunk.start..first + chunk.end;
                self.cut.stage(&piece, images, some, staged);
                for (panel, out) in task.panels.clone().zip(sums.chunks_exact_mut(each)) {
                    let weight = &packed[self.place(task.group, &chunk, panel)];
                    self.multiply(&parts, staged, weight, &chunk, out);
                }
            }
            let order = order(&parts, &piece);
            for (panel, sums) in task.panels.clone().zip(sums.chunks_exact(each)) {
                let panel = Written {
                    group: task.group,
                    panel,
                    sums,
                    order: &order,
                };
                match self.in_strips {
                    true => self.write_strips(&piece, &panel, to),
                    false => self.write_places(&piece, &panel, to),
                }
            }
        });
    }

    /// The rows of a piece's products, and what each sums over in a chunk of channels.
    fn parts(&self, piece: &Piece) -> Vec<Part> {
        let taps = self.cut.pass.taps();
        if self.in_strips {
            let lines = piece.len() / self.cut.pass.count[2];
            let strips = lines * self.cut.pass.count[2].div_ceil(self.lanes);
            let all: Vec<usize> = (0..taps).collect();
            return vec![Part {
                numbers: Vec::new(),
                rows: self.strips[..strips].to_vec(),
                depth: self.depth(&all),
                taps,
            }];
        }
        let classes = match self.job.channels[0] * taps < DEEP {
            true => vec![Class {
                places: (0..piece.len()).collect(),
                taps: (0..taps).collect(),
            }],
            false => self.cut.classes(piece),
        };
        let part = |class: Class| Part {
            rows: class
                .places
                .iter()
                .map(|&place| self.cut.places[place])
                .collect(),
            depth: self.depth(&class.taps),
            taps: class.taps.len(),
            numbers: class.places,
        };
        classes.into_iter().map(part).collect()
    }

    /// Steps of these taps of each channel of a chunk.
    fn depth(&self, taps: &[usize]) -> Vec<Step> {
        let step = |right: usize| Step {
            left: self.cut.depth[right],
            right,
        };
        let all = self.cut.pass.taps();
        let channel = |c: usize| taps.iter().map(move |tap| step(c * all + tap));
        (0..self.chunk).flat_map(channel).collect()
    }

    fn multiply(
        &self,
        parts: &[Part],
        staged: &[f32],
        weight: &[f32],
        chunk: &Range<usize>,
        out: &mut [f32],
    ) {
        let each = self.width * if self.in_strips { self.lanes } else { 1 };
        let add = chunk.start > 0;
        let mut rest = out;
        for part in parts {
            let (out, after) = rest.split_at_mut(part.rows.len() * each);
            rest = after;
            let left = Gathered {
                values: staged,
                rows: &part.rows,
                depth: &part.depth[..chunk.len() * part.taps],
            };
            match self.in_strips {
                true => strips::multiply(left, weight, self.width, out, add),
                false => gather::multiply(left, weight, out, add),
            }
        }
    }
}

/// Rows of a product that sum over the same.
struct Part {
    /// The places of the piece that they are.
    numbers: Vec<usize>,
    rows: Vec<usize>,
    /// Of a whole chunk of channels; taps of a channel.
    depth: Vec<Step>,
    taps: usize,
}

/// In which row each place of the piece is.
fn order(parts: &[Part], piece: &Piece) -> Vec<usize> {
    let mut order = vec![0; piece.len()];
    let numbers = parts.iter().flat_map(|part| &part.numbers);
    for (row, &number) in numbers.enumerate() {
        order[number] = row;
    }
    order
}

/// A part that only this task writes.
#[expect(
    unsafe_code,
    reason = "tasks write parts of a tensor, which no split of a slice describes"
)]
pub(super) fn part<'a>(all: Shared<'a>, range: Range<usize>) -> &'a mut [f32] {
    // SAFETY: each element of what is written here is one task's, which uses one part at a time.
    unsafe { all.range(range.start, range.len()) }
}
