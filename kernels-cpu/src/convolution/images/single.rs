//! One channel read and one written a group (depthwise): each line is summed to where it belongs.

use super::super::strips::{Lines, sum};
use super::{Job, Plan, Task, part};
use crate::parallel::{Shared, with_scratch};

impl Plan<'_> {
    /// Whether a group has one channel, and lines are a vector at least.
    pub(super) fn single(&self) -> bool {
        self.in_strips && self.job.channels == [1; 2] && self.cut.pass.count[2] >= self.lanes
    }

    /// Sums of the places of the `n`th image of a piece, which is staged.
    fn sum_image(&self, n: usize, staged: &[f32], kernel: (&[f32], f32), to: &mut [f32]) {
        let line = self.cut.pass.count[2];
        let places = &self.cut.places[n * to.len()..][..to.len()];
        let starts: Vec<_> = places.iter().step_by(line).copied().collect();
        let lines = Lines {
            values: staged,
            starts: &starts,
            line,
        };
        sum(lines, &self.cut.depth, kernel, to);
    }
}

impl Job<'_> {
    /// Writes what all passes give at a piece's places.
    pub(super) fn compute_single(&self, plans: &[Plan], task: &Task, packed: &[f32], to: Shared) {
        let most = |size: fn(&Plan) -> usize| plans.iter().map(size).max().unwrap_or(0);
        let staged = most(|plan| plan.cut.staged(1) + plan.lanes);
        let places = most(|plan| plan.cut.places.len());
        // Passes that differ along the width alone write the same lines.
        let apart = plans[0].cut.pass.step[2];
        let image: usize = self.target.iter().product();
        let whole = plans[0].cut.pass.step == [1; 3];
        let bias = self.bias.map_or(0.0, |bias| bias[task.group]);
        let mut rest = packed;
        with_scratch(staged + apart * places, |scratch| {
            let (staged, sums) = scratch.split_at_mut(staged);
            for plans in plans.chunks(apart) {
                let runs = plans[0].runs(&plans[0].cut.piece(task.piece), whole);
                for (plan, sums) in plans.iter().zip(sums.chunks_exact_mut(places)) {
                    let (packed, after) = rest.split_at(plan.packed());
                    rest = after;
                    let kernel = (&packed[plan.place(task.group, &(0..1), 0)], bias);
                    let piece = plan.cut.piece(task.piece);
                    if piece.len() == 0 {
                        continue;
                    }
                    let images = (self.image, self.groups);
                    let group = task.group..task.group + 1;
                    plan.cut.stage(&piece, images, group, staged);
                    let count = piece.len() / piece.images.len();
                    for n in 0..piece.images.len() {
                        if whole {
                            let run = &runs[n];
                            let start = (run.image * self.groups + task.group) * image + run.start;
                            plan.sum_image(n, staged, kernel, part(to, start..start + count));
                        } else {
                            plan.sum_image(n, staged, kernel, &mut sums[n * count..][..count]);
                        }
                    }
                }
                if whole {
                    continue;
                }
                let widths = plans.iter().map(|plan| plan.cut.pass.count[2]);
                let width: usize = widths.clone().sum();
                for (i, run) in runs.iter().enumerate() {
                    let start = (run.image * self.groups + task.group) * image + run.start;
                    let to = part(to, start..start + width);
                    let lines = widths.clone().zip(sums.chunks_exact(places));
                    interleave(lines.map(|(width, sums)| &sums[i * width..][..width]), to);
                }
            }
        });
    }
}

/// Takes an element of each line in turn.
fn interleave<'a>(mut lines: impl ExactSizeIterator<Item = &'a [f32]>, to: &mut [f32]) {
    let apart = lines.len();
    if apart == 2
        && let (Some(even), Some(odd)) = (lines.next(), lines.next())
    {
        let (pairs, last) = to.as_chunks_mut::<2>();
        for ((to, even), odd) in pairs.iter_mut().zip(even).zip(odd) {
            *to = [*even, *odd];
        }
        last.copy_from_slice(&even[odd.len()..]);
        return;
    }
    for (first, line) in lines.enumerate() {
        for (to, x) in to[first..].iter_mut().step_by(apart).zip(line) {
            *to = *x;
        }
    }
}
