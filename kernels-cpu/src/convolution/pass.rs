//! A pass over an image: which of its elements are products' left operands, for each place of a lattice.
//!
//! A convolution is one pass over its input. Its data gradient is one pass over the output's gradient for each residue of the stride:
//! the places of the input with this residue meet the same elements of the kernel, and no others.

use std::ops::Range;

use super::Convolution;

/// An element of the kernel along one dimension.
#[derive(Debug, Clone, Copy)]
struct Tap {
    kernel: usize,
    /// Where it meets the image for place 0 of the lattice.
    offset: isize,
}

/// Places of a lattice that are computed at once.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub images: Range<usize>,
    pub places: [Range<usize>; 3],
}

impl Piece {
    pub fn len(&self) -> usize {
        self.images.len() * self.places.iter().map(Range::len).product::<usize>()
    }
}

/// Places that meet the same taps.
pub(super) struct Class {
    /// Their numbers in the piece.
    pub places: Vec<usize>,
    pub taps: Vec<usize>,
}

pub(super) struct Pass {
    /// Size of the image that is read.
    image: [usize; 3],
    /// Places of the lattice.
    pub count: [usize; 3],
    /// From one place to the next, in the image that is read.
    stride: [usize; 3],
    taps: [Vec<Tap>; 3],
    /// The first place of the lattice in the image that is written, and from one to the next there.
    pub origin: [usize; 3],
    pub step: [usize; 3],
}

impl Pass {
    /// Over the input, for each place of the output.
    pub fn over_input(of: &Convolution) -> Self {
        let p = of.problem();
        let taps = |i: usize| {
            let tap = |kernel| Tap {
                kernel,
                offset: (kernel * p.dilation[i]) as isize - p.padding[i][0] as isize,
            };
            (0..p.kernel[i]).map(tap).collect()
        };
        Self {
            image: p.input,
            count: of.output(),
            stride: p.stride,
            taps: [0, 1, 2].map(taps),
            origin: [0; 3],
            step: [1; 3],
        }
    }

    /// Over the output's gradient, for each place of the input with these residues.
    pub fn over_output(of: &Convolution, residues: [usize; 3]) -> Self {
        let p = of.problem();
        let taps = |i: usize| {
            let tap = |kernel: usize| {
                let padded = (residues[i] + p.padding[i][0]) as isize;
                let (at, stride) = (
                    padded - (kernel * p.dilation[i]) as isize,
                    p.stride[i] as isize,
                );
                (at % stride == 0).then_some(Tap {
                    kernel,
                    offset: at / stride,
                })
            };
            (0..p.kernel[i]).filter_map(tap).collect()
        };
        Self {
            image: of.output(),
            count: [0, 1, 2].map(|i| {
                let after = p.input[i].saturating_sub(residues[i]);
                after.div_ceil(p.stride[i])
            }),
            stride: [1; 3],
            taps: [0, 1, 2].map(taps),
            origin: residues,
            step: p.stride,
        }
    }

    /// The passes that give the whole data gradient.
    pub fn all_over_output(of: &Convolution) -> Vec<Self> {
        let [depth, height, width] = of.problem().stride;
        let residues = (0..depth * height * width)
            .map(|i| [i / width / height, i / width % height, i % width]);
        let passes = residues.map(|residues| Self::over_output(of, residues));
        passes
            .filter(|pass| pass.count.iter().all(|&count| count > 0))
            .collect()
    }

    /// Elements of the kernel that it meets.
    pub fn taps(&self) -> usize {
        self.taps.iter().map(Vec::len).product()
    }

    /// Where these elements are in a kernel of this size, in the order of [`Cut`]'s depth.
    pub fn elements(&self, kernel: [usize; 3]) -> Vec<usize> {
        self.for_taps(|[a, b, c]| (a.kernel * kernel[1] + b.kernel) * kernel[2] + c.kernel)
    }

    fn for_taps<T>(&self, of: impl Fn([&Tap; 3]) -> T) -> Vec<T> {
        let [depth, height, width] = &self.taps;
        let mut all = Vec::with_capacity(self.taps());
        for a in depth {
            for b in height {
                all.extend(width.iter().map(|c| of([a, b, c])));
            }
        }
        all
    }

    /// Places along one dimension, from the first on, by the taps that meet the image there.
    fn sorted(&self, i: usize, places: Range<usize>) -> Vec<(Range<usize>, Vec<usize>)> {
        let mut all: Vec<(Range<usize>, Vec<usize>)> = Vec::new();
        for place in places.clone() {
            let start = (place * self.stride[i]) as isize;
            let inside = |tap: &Tap| (0..self.image[i] as isize).contains(&(start + tap.offset));
            // Offsets are in order, so that those inside are neighbours.
            let first = self.taps[i].iter().position(inside).unwrap_or(0);
            let taps = first..first + self.taps[i].iter().filter(|tap| inside(tap)).count();
            match all.iter_mut().find(|(other, _)| *other == taps) {
                Some((_, same)) => same.push(place - places.start),
                None => all.push((taps, vec![place - places.start])),
            }
        }
        all
    }

    /// The least offset in each dimension, and how much more the greatest is.
    fn offsets(&self) -> [(isize, usize); 3] {
        [0, 1, 2].map(|i| {
            let offsets = || self.taps[i].iter().map(|tap| tap.offset);
            let least = offsets().min().unwrap_or(0);
            (least, (offsets().max().unwrap_or(0) - least) as usize)
        })
    }
}

/// A pass cut into pieces, whose patches of the image, with its padding, are copied into memory of their own (staged). Places and
/// elements of the kernel are then mere steps there, the same for all pieces.
pub(super) struct Cut<'a> {
    pub pass: &'a Pass,
    batch: usize,
    /// Images and places from one piece to the next; where one is cut, those before it are 1.
    every: [usize; 4],
    /// How many pieces there are.
    parts: [usize; 4],
    /// Images and places of the largest piece.
    most: [usize; 4],
    /// Size of a staged image.
    extent: [usize; 3],
    /// First element that is staged for place 0.
    least: [isize; 3],
    /// How many lines a staged line is taken apart into: the stride, where neighbours of the lattice must be neighbours in memory.
    apart: usize,
    /// Steps of the places, images first, and of the taps of all channels, channels first.
    pub places: Vec<usize>,
    pub depth: Vec<usize>,
}

impl<'a> Cut<'a> {
    /// Pieces of about `pixels` places of a lattice of `count`, which may be larger than the pass's own, so that the pieces of several
    /// passes lie at the same places. So many channels are staged at a time. In `strips`, neighbours of a line are neighbours in
    /// memory.
    pub fn new(
        pass: &'a Pass,
        [batch, channels, pixels]: [usize; 3],
        count: [usize; 3],
        strips: bool,
    ) -> Self {
        let every @ [images, planes, lines, width] = every(batch, count, pixels);
        let [depth, height, _] = count;
        let parts = [batch, depth, height, width];
        let parts = [0, 1, 2, 3].map(|i| parts[i].div_ceil(every[i].max(1)));
        let [depth, height, width] = pass.count;
        let [planes, lines] = [planes.min(depth), lines.min(height)];
        let most = [images, planes, lines, width];
        let offsets = pass.offsets();
        let apart = if strips { pass.stride[2] } else { 1 };
        let mut extent =
            [0, 1, 2].map(|i| (most[i + 1].max(1) - 1) * pass.stride[i] + offsets[i].1 + 1);
        extent[2] = extent[2].next_multiple_of(apart);
        let size: usize = extent.iter().product();
        let step = |at: [usize; 3]| {
            let inner = at[2] % apart * (extent[2] / apart) + at[2] / apart;
            (at[0] * extent[1] + at[1]) * extent[2] + inner
        };
        let mut places = Vec::with_capacity(images * planes * lines * width);
        for n in 0..images {
            for a in 0..planes {
                for b in 0..lines {
                    let [d, h, w] = pass.stride;
                    let at = |c: usize| step([a * d, b * h, c * w]);
                    places.extend((0..width).map(|c| n * size + at(c)));
                }
            }
        }
        let taps =
            pass.for_taps(|taps| step([0, 1, 2].map(|i| (taps[i].offset - offsets[i].0) as usize)));
        let channel = |c: usize| taps.iter().map(move |tap| c * images * size + tap);
        Self {
            pass,
            batch,
            every,
            parts,
            most,
            extent,
            least: offsets.map(|(least, _)| least),
            apart,
            places,
            depth: (0..channels).flat_map(channel).collect(),
        }
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> usize {
        self.parts.iter().product()
    }

    /// One of them.
    pub fn piece(&self, number: usize) -> Piece {
        let [_, planes, lines, widths] = self.parts;
        let at = [
            number / widths / lines / planes,
            number / widths / lines % planes,
            number / widths % lines,
            number % widths,
        ];
        let range = |i: usize, count: usize| {
            let start = (at[i] * self.every[i]).min(count);
            start..(start + self.every[i]).min(count)
        };
        let [depth, height, width] = self.pass.count;
        Piece {
            images: range(0, self.batch),
            places: [range(1, depth), range(2, height), range(3, width)],
        }
    }

    /// The places of a piece, sorted by the taps that meet the image there; the others meet the padding.
    pub fn classes(&self, piece: &Piece) -> Vec<Class> {
        let sorted = [0, 1, 2].map(|i| self.pass.sorted(i, piece.places[i].clone()));
        let [_, planes, lines, width] = self.most;
        let [_, height, row] = [0, 1, 2].map(|i| self.pass.taps[i].len());
        let mut all = Vec::new();
        for (taps_a, places_a) in &sorted[0] {
            for (taps_b, places_b) in &sorted[1] {
                for (taps_c, places_c) in &sorted[2] {
                    let mut class = Class {
                        places: Vec::new(),
                        taps: Vec::new(),
                    };
                    for n in 0..piece.images.len() {
                        for a in places_a {
                            for b in places_b {
                                let line = ((n * planes + a) * lines + b) * width;
                                class.places.extend(places_c.iter().map(|c| line + c));
                            }
                        }
                    }
                    for a in taps_a.clone() {
                        for b in taps_b.clone() {
                            let line = (a * height + b) * row;
                            class.taps.extend(taps_c.clone().map(|c| line + c));
                        }
                    }
                    all.push(class);
                }
            }
        }
        all
    }

    /// Starts of strips of so many places, of all lines.
    pub fn strips(&self, len: usize) -> Vec<usize> {
        let lines = self.places.chunks(self.pass.count[2].max(1));
        lines
            .flat_map(|line| line.iter().step_by(len))
            .copied()
            .collect()
    }

    /// Elements that are staged of so many channels.
    pub fn staged(&self, channels: usize) -> usize {
        channels * self.most[0] * self.extent.iter().product::<usize>()
    }

    /// Stages some of the `channels` of the images.
    pub fn stage(
        &self,
        piece: &Piece,
        (images, channels): (&[f32], usize),
        staged: Range<usize>,
        to: &mut [f32],
    ) {
        let [from, size] = [self.pass.image, self.extent].map(|x| x.iter().product::<usize>());
        for (i, channel) in staged.enumerate() {
            for (j, n) in piece.images.clone().enumerate() {
                let image = &images[(n * channels + channel) * from..][..from];
                let to = &mut to[(i * self.most[0] + j) * size..][..size];
                self.stage_image(piece, image, to);
            }
        }
    }

    fn stage_image(&self, piece: &Piece, image: &[f32], to: &mut [f32]) {
        let first = [0, 1, 2]
            .map(|i| (piece.places[i].start * self.pass.stride[i]) as isize + self.least[i]);
        let [_, height, width] = self.pass.image;
        let [_, lines, line] = self.extent;
        let inside = |at: isize, i: usize| (0..self.pass.image[i] as isize).contains(&at);
        // The part of a line that lies in the image.
        let before = (-first[2]).clamp(0, line as isize) as usize;
        let until = (width as isize - first[2]).clamp(before as isize, line as isize) as usize;
        let planes = to.chunks_exact_mut(lines * line).enumerate();
        for (a, plane) in planes {
            let a = first[0] + a as isize;
            if !inside(a, 0) {
                plane.fill(0.0);
                continue;
            }
            for (b, to) in plane.chunks_exact_mut(line).enumerate() {
                let b = first[1] + b as isize;
                if !inside(b, 1) || before == until {
                    to.fill(0.0);
                    continue;
                }
                let start = (a as usize * height + b as usize) * width;
                let start = start + (first[2] + before as isize) as usize;
                let from = &image[start..start + until - before];
                if self.apart == 1 {
                    to[..before].fill(0.0);
                    to[before..until].copy_from_slice(from);
                    to[until..].fill(0.0);
                } else {
                    self.take_apart(from, before, to);
                }
            }
        }
    }

    /// Elements that are a stride apart become neighbours.
    fn take_apart(&self, from: &[f32], before: usize, to: &mut [f32]) {
        to.fill(0.0);
        let lines = to.chunks_exact_mut(to.len() / self.apart);
        for (residue, to) in lines.enumerate() {
            let first = before.saturating_sub(residue).div_ceil(self.apart);
            let from = &from[(first * self.apart + residue - before).min(from.len())..];
            if self.apart == 2 {
                let (to, _) = to[first..].split_at_mut(from.len().div_ceil(2));
                every_other(from, to);
                continue;
            }
            for (to, x) in to[first..].iter_mut().zip(from.iter().step_by(self.apart)) {
                *to = *x;
            }
        }
    }
}

/// Images and places of a piece of about `pixels` places.
fn every(batch: usize, count: [usize; 3], pixels: usize) -> [usize; 4] {
    let [depth, height, width] = count;
    let cut = |count: usize, inner: usize| {
        let parts = count.div_ceil((pixels / inner.max(1)).max(1));
        count.div_ceil(parts.max(1)).max(1)
    };
    // A line is whole; a plane if lines are left over; and so on.
    let lines = cut(height, width);
    let planes = if lines < height {
        1
    } else {
        cut(depth, height * width)
    };
    let volume = depth * height * width;
    let whole = lines >= height && planes >= depth;
    let images = if whole { cut(batch, volume) } else { 1 };
    [images, planes, lines, width]
}

/// The first, the third, and so on: eight at a time, which compilers make vectors of.
fn every_other(from: &[f32], to: &mut [f32]) {
    let (whole, _) = from.as_chunks::<16>();
    let (parts, _) = to.as_chunks_mut::<8>();
    for (to, from) in parts.iter_mut().zip(whole) {
        for i in 0..8 {
            to[i] = from[2 * i];
        }
    }
    let done = whole.len() * 8;
    for (to, x) in to[done..]
        .iter_mut()
        .zip(from[2 * done..].iter().step_by(2))
    {
        *to = *x;
    }
}
