//! How a parameter lies on the tensor-parallel ranks. Initialisation, gradient reduction, gradient norm, ZeRO,
//! checkpoints and memory plans all derive from it.

use serde::{Deserialize, Serialize};

/// How a logical tensor lies on the ranks of a tensor-parallel group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// Every rank holds all of it.
    Replicated,
    /// Dimension `dim` is split. It consists of consecutive `parts` (query, key and value of a fused projection; gate
    /// and up of SwiGLU); every part is split evenly, so a rank holds its slice of each part, side by side.
    /// A part is padded with zeros at its end until it is a multiple of `multiple * ranks`.
    Sharded {
        /// The dimension that is split.
        dim: usize,
        /// Logical lengths of the parts of that dimension; their sum is the dimension's length.
        parts: Vec<usize>,
        /// A rank's share of a part is a multiple of this (1: no padding unless the part does not divide).
        multiple: usize,
    },
    /// Every rank holds a summand; the tensor is the sum over the group.
    Partial,
}

/// A box in a logical tensor, and where it lies in a rank's local tensor of the same rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// First index in the logical tensor, per dimension.
    pub global: Vec<usize>,
    /// First index in the local tensor, per dimension.
    pub local: Vec<usize>,
    /// Lengths, per dimension; none is zero.
    pub len: Vec<usize>,
}

impl Block {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.len.iter().product()
    }
}

impl Placement {
    /// Splits dimension `dim` of length `len` evenly.
    pub fn sharded(dim: usize, len: usize) -> Self {
        Self::Sharded {
            dim,
            parts: vec![len],
            multiple: 1,
        }
    }

    /// Length of one rank's share of a part.
    fn share(part: usize, multiple: usize, ranks: usize) -> usize {
        part.div_ceil(multiple * ranks) * multiple
    }

    /// Shape of the local tensor of one of `ranks` ranks, padding included.
    pub fn local_shape(&self, shape: &[usize], ranks: usize) -> Vec<usize> {
        let mut local = shape.to_vec();
        if let Self::Sharded {
            dim,
            parts,
            multiple,
        } = self
        {
            local[*dim] = parts
                .iter()
                .map(|&part| Self::share(part, *multiple, ranks))
                .sum();
        }
        local
    }

    /// The boxes of the logical tensor that rank `rank` of `ranks` holds. Padding belongs to no box.
    pub fn blocks(&self, shape: &[usize], rank: usize, ranks: usize) -> Vec<Block> {
        let whole = Block {
            global: vec![0; shape.len()],
            local: vec![0; shape.len()],
            len: shape.to_vec(),
        };
        let Self::Sharded {
            dim,
            parts,
            multiple,
        } = self
        else {
            return vec![whole];
        };
        let (mut blocks, mut global, mut local) = (Vec::new(), 0, 0);
        for &part in parts {
            let share = Self::share(part, *multiple, ranks);
            let (start, end) = ((rank * share).min(part), ((rank + 1) * share).min(part));
            if start < end {
                let mut block = whole.clone();
                block.global[*dim] = global + start;
                block.local[*dim] = local;
                block.len[*dim] = end - start;
                blocks.push(block);
            }
            global += part;
            local += share;
        }
        blocks
    }

    /// Calls `f(logical index, local index, run length)` for every run of elements that is contiguous in both the
    /// logical and the local tensor (row-major), in the order of the local tensor's blocks.
    pub fn for_each_run(
        &self,
        shape: &[usize],
        rank: usize,
        ranks: usize,
        mut f: impl FnMut(usize, usize, usize),
    ) {
        let local_shape = self.local_shape(shape, ranks);
        for block in self.blocks(shape, rank, ranks) {
            for_each_run_of(&block, shape, &local_shape, &mut f);
        }
    }
}

/// Calls `f(logical index, local index, run length)` for every contiguous run of a block (row-major).
pub fn for_each_run_of(
    block: &Block,
    shape: &[usize],
    local_shape: &[usize],
    f: &mut impl FnMut(usize, usize, usize),
) {
    let Some(last) = shape.len().checked_sub(1) else {
        return f(0, 0, 1);
    };
    let run = block.len[last];
    let rows: usize = block.len[..last].iter().product();
    for row in 0..rows {
        let (mut rest, mut global, mut local) = (row, 0, 0);
        let (mut global_stride, mut local_stride) = (shape[last], local_shape[last]);
        for d in (0..last).rev() {
            let i = rest % block.len[d];
            rest /= block.len[d];
            global += (block.global[d] + i) * global_stride;
            local += (block.local[d] + i) * local_stride;
            global_stride *= shape[d];
            local_stride *= local_shape[d];
        }
        f(global + block.global[last], local + block.local[last], run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every logical element is held by exactly one rank, at distinct local places.
    fn covers_once(placement: &Placement, shape: &[usize], ranks: usize) {
        let total: usize = shape.iter().product();
        let mut seen = vec![0; total];
        for rank in 0..ranks {
            let local: usize = placement.local_shape(shape, ranks).iter().product();
            let mut used = vec![false; local];
            placement.for_each_run(shape, rank, ranks, |global, local, len| {
                for i in 0..len {
                    seen[global + i] += 1;
                    assert!(!std::mem::replace(&mut used[local + i], true));
                }
            });
        }
        assert!(seen.iter().all(|&n| n == 1), "{placement:?} {shape:?}");
    }

    #[test]
    fn shards_cover_every_element_once() {
        for ranks in [1, 2, 4] {
            covers_once(&Placement::sharded(0, 8), &[8, 3], ranks);
            covers_once(&Placement::sharded(1, 8), &[3, 8], ranks);
            covers_once(&Placement::sharded(0, 8), &[8], ranks);
            let qkv = Placement::Sharded {
                dim: 1,
                parts: vec![8, 4, 4],
                multiple: 1,
            };
            covers_once(&qkv, &[5, 16], ranks);
            let vocabulary = Placement::Sharded {
                dim: 0,
                parts: vec![130],
                multiple: 128,
            };
            covers_once(&vocabulary, &[130, 2], ranks);
            assert_eq!(
                vocabulary.local_shape(&[130, 2], ranks),
                [[256, 128, 128][ranks / 2], 2]
            );
        }
    }

    #[test]
    fn a_fused_projection_gives_each_rank_its_query_key_and_value() {
        let qkv = Placement::Sharded {
            dim: 0,
            parts: vec![4, 2, 2],
            multiple: 1,
        };
        let mut held = Vec::new();
        qkv.for_each_run(&[8], 1, 2, |global, local, len| {
            held.push((global, local, len))
        });
        assert_eq!(held, [(2, 0, 2), (5, 2, 1), (7, 3, 1)]);
    }
}
