//! Forward and data gradient: images from images.

use std::ops::Range;

use super::gather::{self, Gathered, for_columns};
use super::pass::{Cut, Pass, Piece};
use super::{Convolution, Problem, strips};
use crate::parallel::{Shared, for_tasks, threads, with_scratch};

/// What the depth, channels and elements of the kernel, is cut into.
const DEPTH: usize = 256;
/// Places of a piece, at least and at most.
const PLACES: [usize; 2] = [96, 512];

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
        let places = passes
            .iter()
            .map(|pass| pass.count.iter().product::<usize>());
        let places = self.batch * places.max().unwrap_or(0);
        let work: usize = passes.iter().map(work).sum();
        let parallel =
            work * self.batch * self.groups * self.channels[0] * self.channels[1] >= PARALLEL;
        let plans: Vec<Plan> = passes
            .iter()
            .map(|pass| {
                Plan::new(
                    self,
                    pass,
                    (places / (8 * threads())).clamp(PLACES[0], PLACES[1]),
                )
            })
            .collect();
        let packed: usize = plans.iter().map(|plan| plan.packed()).sum();
        with_scratch(packed, |scratch| {
            let mut start = 0;
            for plan in &plans {
                plan.pack(&mut scratch[start..start + plan.packed()], parallel);
                start += plan.packed();
            }
            let to = Shared::new(to);
            let tasks = self.tasks(&plans);
            for_tasks(tasks.len(), parallel, |i| {
                let task = &tasks[i];
                let plan = &plans[task.plan];
                let start: usize = plans[..task.plan].iter().map(|plan| plan.packed()).sum();
                plan.compute(task, &scratch[start..start + plan.packed()], to);
            });
        });
    }

    /// Pieces of all passes and groups; where there are few, of some of the columns each.
    fn tasks(&self, plans: &[Plan]) -> Vec<Task> {
        let pieces: usize = plans.iter().map(|plan| plan.cut.pieces()).sum();
        let mut all = Vec::new();
        for (number, plan) in plans.iter().enumerate() {
            let panels = plan.panels;
            let parts = (4 * threads()).div_ceil((pieces * self.groups).max(1));
            let some = panels.div_ceil(parts.min(panels).max(1)).max(1);
            for piece in 0..plan.cut.pieces() {
                for group in 0..self.groups {
                    let parts = (0..panels).step_by(some);
                    all.extend(parts.map(|first| Task {
                        plan: number,
                        piece,
                        group,
                        panels: first..(first + some).min(panels),
                    }));
                }
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
    plan: usize,
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
fn strips_pay(channels: usize, line: usize, lanes: usize) -> bool {
    channels * line.next_multiple_of(lanes) < channels.next_multiple_of(lanes) * line
}

/// One pass of a job.
struct Plan<'a> {
    job: &'a Job<'a>,
    cut: Cut<'a>,
    /// Starts of strips, if strips of places are vectors; else the channels of a panel are.
    strips: Option<Vec<usize>>,
    lanes: usize,
    /// Channels that are written together: those of a panel of the kernels.
    width: usize,
    panels: usize,
    /// Channels that are summed over at a time.
    chunk: usize,
}

impl<'a> Plan<'a> {
    fn new(job: &'a Job<'a>, pass: &'a Pass, places: usize) -> Self {
        let channels = job.channels[0];
        let most = (DEPTH / pass.taps().max(1)).max(1);
        let chunk = even(channels, most);
        let lanes = gather::width();
        let (in_strips, width) = match strips_pay(job.channels[1], pass.count[2], lanes) {
            true => (true, even(job.channels[1], strips::CHANNELS)),
            false => (false, lanes),
        };
        let cut = Cut::new(pass, job.batch, chunk, places, in_strips);
        Self {
            job,
            strips: in_strips.then(|| cut.strips(lanes)),
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
        let chunks: Vec<_> = self.chunks().collect();
        let to = Shared::new(to);
        for_tasks(job.groups * chunks.len(), parallel, |i| {
            let (group, chunk) = (i / chunks.len(), &chunks[i % chunks.len()]);
            for panel in 0..self.panels {
                let channels = self.channels(panel);
                let place = self.place(group, chunk, panel);
                let to = part(to, place);
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
        let job = self.job;
        let piece = self.cut.piece(task.piece);
        let strips = self.strips.as_ref().map(|all| {
            let lines = piece.len() / self.cut.pass.count[2];
            &all[..lines * self.cut.pass.count[2].div_ceil(self.lanes)]
        });
        let each = match strips {
            Some(strips) => strips.len() * self.width * self.lanes,
            None => piece.len() * self.width,
        };
        let (sums, staged) = (task.panels.len() * each, self.cut.staged(self.chunk));
        let taps = self.cut.pass.taps();
        let channels = job.channels[0];
        with_scratch(sums + staged + self.lanes, |scratch| {
            let (sums, staged) = scratch.split_at_mut(sums);
            for chunk in self.chunks() {
                let all = [chunk.start, chunk.end].map(|c| task.group * channels + c);
                self.cut.stage(
                    &piece,
                    (job.image, job.groups * channels),
                    all[0]..all[1],
                    staged,
                );
                let left = Gathered {
                    values: staged,
                    rows: strips.unwrap_or(&self.cut.places[..piece.len()]),
                    depth: &self.cut.depth[..chunk.len() * taps],
                };
                for (panel, out) in task.panels.clone().zip(sums.chunks_exact_mut(each)) {
                    let right = &packed[self.place(task.group, &chunk, panel)];
                    let add = chunk.start > 0;
                    match strips {
                        Some(_) => strips::multiply(left, right, self.width, out, add),
                        None => gather::multiply(left, right, out, add),
                    }
                }
            }
            for (panel, sums) in task.panels.clone().zip(sums.chunks_exact(each)) {
                self.write(&piece, task.group, panel, sums, to);
            }
        });
    }

    /// Writes the sums of a panel's channels, `[places, width]` or `[strips, width, lanes]`, to their places in the images.
    fn write(&self, piece: &Piece, group: usize, panel: usize, sums: &[f32], to: Shared) {
        let job = self.job;
        let image: usize = job.target.iter().product();
        let all = job.groups * job.channels[1];
        let channels = self.channels(panel);
        let first = group * job.channels[1] + channels.start;
        let put = |run: &Run, column: usize, place: usize, values: &[f32]| {
            let channel = first + column;
            let start = (run.image * all + channel) * image + run.start + place * run.step;
            let bias = job.bias.map_or(0.0, |bias| bias[channel]);
            put(to, start, run.step, values, bias);
        };
        if self.strips.is_none() {
            for run in self.runs(piece, self.cut.pass.step == [1; 3]) {
                let sums = &sums[run.sums.start * self.width..run.sums.end * self.width];
                for_columns(sums, self.width, channels.len(), |column, place, values| {
                    put(&run, column, place, values);
                });
            }
            return;
        }
        let line = self.cut.pass.count[2];
        let sums = sums.chunks_exact(line.div_ceil(self.lanes) * self.width * self.lanes);
        for (run, sums) in self.runs(piece, false).iter().zip(sums) {
            for (i, sums) in sums.chunks_exact(self.lanes).enumerate() {
                let (place, column) = (i / self.width * self.lanes, i % self.width);
                if column < channels.len() {
                    put(run, column, place, &sums[..self.lanes.min(line - place)]);
                }
            }
        }
    }

    /// What of a piece is written in steps of one size: all of an image where its places are neighbours (`whole`), else lines.
    fn runs(&self, piece: &Piece, whole: bool) -> Vec<Run> {
        let Pass { origin, step, .. } = self.cut.pass;
        let [_, height, width] = self.job.target;
        let at = |a: usize, b: usize| {
            ((origin[0] + a * step[0]) * height + origin[1] + b * step[1]) * width + origin[2]
        };
        let [planes, lines, line] = &piece.places;
        let mut all = Vec::new();
        let mut run = |image: usize, start: usize, len: usize| {
            let before = all.last().map_or(0, |run: &Run| run.sums.end);
            all.push(Run {
                image,
                start,
                step: step[2],
                sums: before..before + len,
            });
        };
        for image in piece.images.clone() {
            if whole {
                let len = planes.len() * lines.len() * line.len();
                run(image, at(planes.start, lines.start), len);
                continue;
            }
            for a in planes.clone() {
                for b in lines.clone() {
                    run(image, at(a, b), line.len());
                }
            }
        }
        all
    }
}

struct Run {
    image: usize,
    /// The first element in the image, and from one to the next.
    start: usize,
    step: usize,
    sums: Range<usize>,
}

fn put(to: Shared, start: usize, step: usize, values: &[f32], bias: f32) {
    if step == 1 {
        let to = part(to, start..start + values.len());
        for (to, x) in to.iter_mut().zip(values) {
            *to = x + bias;
        }
        return;
    }
    for (i, x) in values.iter().enumerate() {
        let at = start + i * step;
        part(to, at..at + 1)[0] = x + bias;
    }
}

/// A part that only this task writes.
#[expect(
    unsafe_code,
    reason = "tasks write parts of images, which no split of a slice describes"
)]
fn part<'a>(all: Shared<'a>, range: Range<usize>) -> &'a mut [f32] {
    // SAFETY: each place of the packed kernels and of the images is one task's, which uses one part at a time.
    unsafe { all.range(range.start, range.len()) }
}
