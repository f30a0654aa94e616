//! Forward and data gradient: images from images.

use std::ops::Range;

use super::gather::{Gathered, for_columns, multiply, widths};
use super::pass::{Cut, Pass, Piece};
use super::{Convolution, Problem};
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
            let panels = plan.panels.len();
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

/// Channels that are written together: those of a panel of the kernels.
struct Panel {
    channels: Range<usize>,
    width: usize,
    /// Widths of all panels before it.
    before: usize,
}

/// Panels of two vectors; the last is of one where that holds its channels.
fn panels(channels: usize) -> Vec<Panel> {
    let [one, two] = widths();
    let panel = |first: usize| {
        let channels = first..(first + two).min(channels);
        Panel {
            width: if channels.len() <= one { one } else { two },
            channels,
            before: first,
        }
    };
    (0..channels).step_by(two).map(panel).collect()
}

/// One pass of a job.
struct Plan<'a> {
    job: &'a Job<'a>,
    cut: Cut<'a>,
    panels: Vec<Panel>,
    /// Channels that are summed over at a time.
    chunk: usize,
}

impl<'a> Plan<'a> {
    fn new(job: &'a Job<'a>, pass: &'a Pass, places: usize) -> Self {
        let channels = job.channels[0];
        let most = (DEPTH / pass.taps().max(1)).max(1);
        let chunk = channels.div_ceil(channels.div_ceil(most).max(1));
        Self {
            job,
            cut: Cut::new(pass, job.batch, chunk, places),
            panels: panels(job.channels[1]),
            chunk,
        }
    }

    fn width(&self) -> usize {
        self.panels
            .last()
            .map_or(0, |panel| panel.before + panel.width)
    }

    fn group(&self) -> usize {
        self.width() * self.job.channels[0] * self.cut.pass.taps()
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
    fn place(&self, group: usize, chunk: &Range<usize>, panel: &Panel) -> Range<usize> {
        let taps = self.cut.pass.taps();
        let start = group * self.group()
            + chunk.start * taps * self.width()
            + panel.before * chunk.len() * taps;
        start..start + panel.width * chunk.len() * taps
    }

    /// Packs the kernels: each panel `[channels that are read, taps, channels that are written]`.
    fn pack(&self, to: &mut [f32], parallel: bool) {
        let job = self.job;
        let elements = self.cut.pass.elements(job.kernel);
        let chunks: Vec<_> = self.chunks().collect();
        let to = Shared::new(to);
        for_tasks(job.groups * chunks.len(), parallel, |i| {
            let (group, chunk) = (i / chunks.len(), &chunks[i % chunks.len()]);
            for panel in &self.panels {
                let place = self.place(group, chunk, panel);
                let to = part(to, place);
                let mut rows = to.chunks_exact_mut(panel.width);
                for channel in chunk.clone() {
                    let start = group * job.group + channel * job.steps[0];
                    for (element, row) in elements.iter().zip(&mut rows) {
                        for (x, out) in row.iter_mut().zip(panel.channels.clone()) {
                            *x = job.weight[start + element + out * job.steps[1]];
                        }
                        row[panel.channels.len()..].fill(0.0);
                    }
                }
            }
        });
    }

    fn compute(&self, task: &Task, packed: &[f32], to: Shared) {
        let job = self.job;
        let piece = self.cut.piece(task.piece);
        let panels = &self.panels[task.panels.clone()];
        let width: usize = panels.iter().map(|panel| panel.width).sum();
        let (sums, staged) = (piece.len() * width, self.cut.staged(self.chunk));
        let taps = self.cut.pass.taps();
        let channels = job.channels[0];
        with_scratch(sums + staged, |scratch| {
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
                    rows: &self.cut.places[..piece.len()],
                    depth: &self.cut.depth[..chunk.len() * taps],
                };
                let mut rest = &mut *sums;
                for panel in panels {
                    let (out, after) = rest.split_at_mut(piece.len() * panel.width);
                    let right = &packed[self.place(task.group, &chunk, panel)];
                    multiply(left, right, panel.width, out, chunk.start > 0);
                    rest = after;
                }
            }
            let mut rest = &*sums;
            for panel in panels {
                let (out, after) = rest.split_at(piece.len() * panel.width);
                self.write(&piece, task.group, panel, out, to);
                rest = after;
            }
        });
    }

    /// Writes the sums of a panel's channels, `[places, width]`, to their places in the images.
    fn write(&self, piece: &Piece, group: usize, panel: &Panel, sums: &[f32], to: Shared) {
        let job = self.job;
        let image: usize = job.target.iter().product();
        let first = group * job.channels[1] + panel.channels.start;
        for run in self.runs(piece) {
            let sums = &sums[run.sums.start * panel.width..run.sums.end * panel.width];
            for_columns(
                sums,
                panel.width,
                panel.channels.len(),
                |column, row, values| {
                    let channel = first + column;
                    let plane = (run.image * job.groups * job.channels[1] + channel) * image;
                    let start = plane + run.start + row * run.step;
                    let bias = job.bias.map_or(0.0, |bias| bias[channel]);
                    if run.step == 1 {
                        for (to, x) in part(to, start..start + values.len()).iter_mut().zip(values)
                        {
                            *to = x + bias;
                        }
                    } else {
                        for (i, x) in values.iter().enumerate() {
                            let at = start + i * run.step;
                            part(to, at..at + 1)[0] = x + bias;
                        }
                    }
                },
            );
        }
    }

    /// What of a piece is written in steps of one size: all of an image where the places are neighbours, else lines.
    fn runs(&self, piece: &Piece) -> Vec<Run> {
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
            if *step == [1; 3] {
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

/// A part that only this task writes.
#[expect(
    unsafe_code,
    reason = "tasks write parts of images, which no split of a slice describes"
)]
fn part<'a>(all: Shared<'a>, range: Range<usize>) -> &'a mut [f32] {
    // SAFETY: each place of the packed kernels and of the images is one task's, which uses one part at a time.
    unsafe { all.range(range.start, range.len()) }
}
