//! Sums to their places in the images.

use std::ops::Range;

use super::super::gather::for_columns;
use super::super::pass::{Pass, Piece};
use super::{Plan, part};
use crate::parallel::Shared;

impl Plan<'_> {
    /// Writes the sums of a panel's channels, `[places, width]`.
    pub(super) fn write_places(&self, piece: &Piece, panel: &Written, to: Shared) {
        let columns = self.channels(panel.panel).len();
        for run in self.runs(piece, self.cut.pass.step == [1; 3]) {
            let order = &panel.order[run.sums.clone()];
            for_columns(panel.sums, order, columns, |column, place, values| {
                self.put(&run, panel, [column, place], values, to);
            });
        }
    }

    /// Writes the sums of a panel's channels, `[strips, width, lanes]`.
    pub(super) fn write_strips(&self, piece: &Piece, panel: &Written, to: Shared) {
        let line = self.cut.pass.count[2];
        let columns = self.channels(panel.panel).len();
        let sums = panel.sums;
        let sums = sums.chunks_exact(line.div_ceil(self.lanes) * self.width * self.lanes);
        for (run, sums) in self.runs(piece, false).iter().zip(sums) {
            for (i, sums) in sums.chunks_exact(self.lanes).enumerate() {
                let (place, column) = (i / self.width * self.lanes, i % self.width);
                if column < columns {
                    let values = &sums[..self.lanes.min(line - place)];
                    self.put(run, panel, [column, place], values, to);
                }
            }
        }
    }

    /// Writes a channel's values at places of a run that are neighbours.
    fn put(&self, run: &Run, panel: &Written, at: [usize; 2], values: &[f32], to: Shared) {
        let [column, place] = at;
        let job = self.job;
        let image: usize = job.target.iter().product();
        let channel = panel.group * job.channels[1] + self.channels(panel.panel).start + column;
        let plane = run.image * job.groups * job.channels[1] + channel;
        let start = plane * image + run.start + place * run.step;
        let bias = job.bias.map_or(0.0, |bias| bias[channel]);
        // What lies between is of other passes, which are this task's.
        let to = part(to, start..start + (values.len() - 1) * run.step + 1);
        if run.step == 1 {
            for (to, x) in to.iter_mut().zip(values) {
                *to = x + bias;
            }
            return;
        }
        for (to, x) in to.iter_mut().step_by(run.step).zip(values) {
            *to = x + bias;
        }
    }

    /// What of a piece is written in steps of one size: all of an image where its places are neighbours (`whole`), else lines.
    pub(super) fn runs(&self, piece: &Piece, whole: bool) -> Vec<Run> {
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

/// Sums of a panel's channels.
pub(super) struct Written<'a> {
    pub group: usize,
    pub panel: usize,
    pub sums: &'a [f32],
    pub order: &'a [usize],
}

pub(super) struct Run {
    pub image: usize,
    /// The first element in the image, and from one to the next.
    pub start: usize,
    step: usize,
    sums: Range<usize>,
}
