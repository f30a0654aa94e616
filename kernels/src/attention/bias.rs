//! How kernels read biases: in vectors where a lane's elements are neighbours in memory, a tile ahead of their use.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::problem::{BiasStrides, Problem};
use crate::matrix::instruction::Element;
use crate::matrix::words::{element_of, load_words, words_of};

/// Along what a bias varies, which decides where its gradient is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Keys, not queries: a mask.
    Keys,
    /// Queries and keys.
    Pairs,
}

impl Form {
    /// Contiguous strides of one bias of this form, for a sequence of `keys`.
    pub(crate) fn strides(self, keys: u32) -> BiasStrides {
        BiasStrides {
            query: if self == Self::Pairs { keys } else { 0 },
            key: 1,
            ..BiasStrides::default()
        }
    }

    /// The form of a bias with these strides.
    pub fn of(bias: BiasStrides) -> Self {
        match bias.query {
            0 => Self::Keys,
            _ => Self::Pairs,
        }
    }
}

/// The rows of a tile of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rows {
    /// Queries; its columns are keys.
    Queries,
    /// Keys; its columns are queries.
    Keys,
}

/// How a kernel reads a bias: what of its strides is compiled into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    /// Along what it varies.
    pub form: Form,
    /// Elements of a read, neighbours along the rows of a tile: a power of two.
    pub width: usize,
    /// Whether neighbouring rows of a tile are neighbours in memory.
    pub contiguous: bool,
    /// Whether what one head has lies within 4 GiB, so that offsets in bytes have 32 bits.
    pub near: bool,
}

impl Access {
    /// How tiles with these `rows` read a bias of `element` with these strides, at most `most` elements at once.
    pub(crate) fn of(
        bias: BiasStrides,
        problem: &Problem,
        element: Element,
        rows: Rows,
        most: usize,
    ) -> Self {
        let (along, across, count) = match rows {
            Rows::Keys => (bias.key, bias.query, problem.keys),
            Rows::Queries => (bias.query, bias.key, problem.queries),
        };
        let contiguous = along == 1;
        // A read begins at a multiple of its width, and ends within the row.
        let all = bias.batch | bias.head | across | count;
        let aligned = 1 << all.trailing_zeros().min(8);
        let last = [(problem.queries, bias.query), (problem.keys, bias.key)];
        let last = last.map(|(n, stride)| u64::from(n.saturating_sub(1)) * u64::from(stride));
        let bytes = (last.iter().sum::<u64>() + 1) * element.bytes() as u64;
        Self {
            form: Form::of(bias),
            width: match contiguous {
                true => most.min(16 / element.bytes()).min(aligned),
                false => 1,
            },
            contiguous,
            near: bytes <= u64::from(u32::MAX),
        }
    }

    /// As a kernel reads it from `buffer`, which may begin where reads of several elements would not be aligned.
    pub(crate) fn from(self, buffer: Option<&BufferArg>, element: Element) -> Self {
        let offset = match buffer {
            Some(BufferArg::Handle { handle }) => handle.handle.offset_start.unwrap_or(0),
            _ => 0,
        };
        let aligned = offset.is_multiple_of((self.width * element.bytes()) as u64);
        Self {
            width: if aligned { self.width } else { 1 },
            ..self
        }
    }

    /// Whether a kernel that reads so can read what `other` was found for.
    fn serves(self, other: Self) -> bool {
        self.form == other.form
            && self.width <= other.width
            && self.contiguous <= other.contiguous
            && self.near <= other.near
    }
}

/// Whether a kernel that reads its biases as `found` can read what `fitting` was found for.
pub(crate) fn serve(found: [Option<Access>; 2], fitting: [Option<Access>; 2]) -> bool {
    let mut pairs = found.into_iter().zip(fitting);
    pairs.all(|pair| match pair {
        (Some(found), Some(fitting)) => found.serves(fitting),
        (found, fitting) => found == fitting,
    })
}

/// How a kernel reads its biases from these buffers.
pub(crate) fn from_buffers(
    bias: [Option<Access>; 2],
    buffers: &[Option<BufferArg>; 2],
    element: Element,
) -> [Option<Access>; 2] {
    [0, 1].map(|i| bias[i].map(|access| access.from(buffers[i].as_ref(), element)))
}

/// Which elements of a tile a lane has, and how it reads their biases.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reads {
    /// Row and column of each, counted from the lane's first row and among its columns.
    pub places: Vec<(usize, usize)>,
    /// How they are read.
    pub access: Access,
    /// Their type.
    pub element: Element,
}

impl Reads {
    /// The first place of each read.
    fn firsts(&self) -> Vec<(usize, usize)> {
        let width = self.access.width;
        let mut firsts: Vec<_> = self
            .places
            .iter()
            .map(|&(row, column)| (row / width * width, column))
            .collect();
        firsts.sort_by_key(|&(row, column)| (column, row));
        firsts.dedup();
        firsts
    }

    fn words_of_a_read(&self) -> usize {
        words_of(self.access.width, self.element.bits())
    }

    /// 32-bit words of all reads.
    pub fn words(&self) -> usize {
        self.firsts().len() * self.words_of_a_read()
    }

    /// The first word of the read that has element `element`, and which of its elements that is.
    fn find(&self, element: usize) -> (usize, usize) {
        let ((row, column), width) = (self.places[element], self.access.width);
        let first = (row / width * width, column);
        let read = self.firsts().iter().position(|&at| at == first);
        (read.unwrap_or(0) * self.words_of_a_read(), row % width)
    }
}

/// Where a lane stands in a bias of a batch entry and a head.
#[derive(CubeType)]
pub(crate) struct Stand {
    /// Element of the bias at (`query`, `key`) = (0, 0); the same for all lanes.
    pub base: u32,
    /// Distance between rows.
    pub along: u32,
    /// Rows that exist, 1 at least.
    pub rows: u32,
    /// The lane's first row of a tile.
    pub row: u32,
    /// Where the lane's columns begin, from `base` on.
    pub columns: Sequence<u32>,
}

/// Reads a lane's biases in the tile that begins at row `first`. If `checked`, rows that do not exist repeat the last.
#[cube]
pub(crate) fn fetch<E: Numeric>(
    bias: &[E],
    stand: &Stand,
    first: u32,
    words: &mut Array<u32>,
    #[comptime] checked: bool,
    #[comptime] reads: Reads,
) {
    let (firsts, access) = comptime!((reads.firsts(), reads.access));
    let (width, size) = comptime!((access.width, reads.words_of_a_read()));
    let bits = comptime!(reads.element.bits());
    // In bytes from the start, so that nothing is left to compute where a place is compared with the last.
    let bytes = comptime!((bits / 8) as u32);
    #[unroll]
    for i in 0..comptime!(firsts.len()) {
        let (row, column) = comptime!(firsts[i]);
        let column = *stand.columns.index(column);
        let to = comptime!(i * size);
        if comptime!(access.contiguous && access.near && !checked) {
            let (shared, own) = (stand.base + first, (column + stand.row) * bytes);
            load_words(bias, shared, own, words, row, width, bits, to);
        } else if comptime!(access.near) {
            let begin = (first + row as u32) * stand.along;
            let mut shared = stand.base;
            let mut own = (column + stand.row * stand.along) * bytes;
            if checked {
                // Rows are at multiples of the width: the last read is within them.
                let last = column + (stand.rows - width as u32) * stand.along;
                own = min(own + begin * bytes, last * bytes);
            } else {
                shared += begin;
            }
            load_words(bias, shared, own, words, 0usize, width, bits, to);
        } else {
            let mut at = first + stand.row + row as u32;
            if checked {
                at = min(at, stand.rows - width as u32);
            }
            let place = stand.base + column + at * stand.along;
            load_words(bias, place, 0u32.runtime(), words, 0usize, width, bits, to);
        }
    }
}

/// The bias of element `element` of the tile that was read to `words`.
#[cube]
pub(crate) fn read_bias<E: Numeric>(
    words: &Array<u32>,
    #[comptime] element: usize,
    #[comptime] reads: Reads,
) -> f32 {
    let (from, within) = comptime!(reads.find(element));
    element_of::<E>(words, from, within, comptime!(reads.element.bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(bias: BiasStrides, keys: u32, rows: Rows) -> Access {
        let problem = Problem::new(2, 2, 64, keys, 32);
        Access::of(bias, &problem, Element::Bf16, rows, 16)
    }

    #[test]
    fn reads_are_as_wide_as_all_that_they_begin_at_is_aligned() {
        let pairs = |keys| BiasStrides {
            head: 64 * keys,
            query: keys,
            key: 1,
            ..BiasStrides::default()
        };
        for (keys, width) in [(256, 8), (36, 4), (34, 2), (35, 1)] {
            assert_eq!(access(pairs(keys), keys, Rows::Keys).width, width);
        }
        let shifted = BiasStrides {
            batch: 2 * 64 * 256 + 2,
            ..pairs(256)
        };
        assert_eq!(access(shifted, 256, Rows::Keys).width, 2);
        // A row of 35 keys ends within a read, even if the next one is aligned.
        assert_eq!(access(pairs(256), 35, Rows::Keys).width, 1);
        // Lanes beside each other, not elements.
        assert_eq!(access(pairs(256), 256, Rows::Queries).width, 1);
    }

    #[test]
    fn heads_of_4_gib_are_read_by_whole_addresses() {
        let wide = |query| BiasStrides {
            query,
            key: 1,
            ..BiasStrides::default()
        };
        assert!(access(wide(1 << 24), 256, Rows::Keys).near);
        assert!(!access(wide(1 << 26), 256, Rows::Keys).near);
    }

    #[test]
    fn a_kernel_serves_what_is_laid_out_as_well_as_it_takes_for_granted() {
        let strides = |query| BiasStrides {
            query,
            key: 1,
            ..BiasStrides::default()
        };
        let (wide, narrow) = (
            access(strides(256), 256, Rows::Keys),
            access(strides(255), 255, Rows::Keys),
        );
        assert!(serve([Some(narrow), None], [Some(wide), None]));
        assert!(!serve([Some(wide), None], [Some(narrow), None]));
        assert!(!serve([Some(wide), None], [None, Some(wide)]));
    }
}
