//! What a workgroup, its waves and their lanes have at hand from step to step.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::biases::Terms;
use super::copy::Rows;
use super::products::Lane;
use super::softmax::State;
use super::tile::Quad;
use crate::attention::plan::Plan;
use crate::attention::score::{Sequence, Site};

/// What a step prepares for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Next {
    /// Scores of which every query sees all.
    Seen,
    /// Scores of which some are masked.
    Masked,
    /// Nothing: it is the last step.
    None,
}

/// Where a workgroup and its lanes stand.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Work {
    /// Its batch entry.
    pub sequence: Sequence,
    /// The lane's first query.
    pub query: u32,
    /// Where the lane stands in fragments.
    pub lane: Lane,
    /// Rows of K.
    pub keys: Rows,
    /// Rows of V.
    pub values: Rows,
    /// Where the first bias begins.
    pub bias1: u32,
    /// Where the second bias begins.
    pub bias2: u32,
    /// Which random numbers dropout takes.
    pub site: Site,
}

/// What the loop reads in memory.
#[derive(CubeType)]
pub(crate) struct Inputs<'a, E: Numeric, WK: Size, WV: Size> {
    /// K.
    pub k: &'a [Vector<E, WK>],
    /// V.
    pub v: &'a [Vector<E, WV>],
    /// The first bias.
    pub bias1: &'a [E],
    /// The second bias.
    pub bias2: &'a [E],
}

/// The buffers that the loop reads.
#[cube]
pub(crate) fn inputs<'a, E: Numeric, WK: Size, WV: Size>(
    k: &'a [Vector<E, WK>],
    v: &'a [Vector<E, WV>],
    bias1: &'a [E],
    bias2: &'a [E],
) -> Inputs<'a, E, WK, WV> {
    Inputs::<'a, E, WK, WV> { k, v, bias1, bias2 }
}

/// Two tiles of K, V and the biases of keys in shared memory, and what will follow there, in registers.
#[derive(CubeType)]
pub(crate) struct Tiles<E: Numeric, SK: Size, SV: Size> {
    pub(super) keys: Shared<[Quad<E>]>,
    pub(super) values: Shared<[Quad<E>]>,
    pub(super) next_keys: Array<Vector<u32, SK>>,
    pub(super) next_values: Array<Vector<u32, SV>>,
    pub(super) terms: Terms<E>,
}

/// What a wave keeps in registers from step to step.
#[derive(CubeType)]
pub(crate) struct Wave<E: Numeric, NB: Size, ND: Size> {
    /// Fragments of Q^T.
    pub queries: Array<Vector<E, NB>>,
    /// Scores of the tile at hand.
    pub scores: Array<f32>,
    /// Tiles of O^T, not yet normalized.
    pub output: Array<Vector<f32, ND>>,
    /// The softmax so far.
    pub state: State,
}

impl Plan {
    /// Pairs of scores of a tile of keys that a lane has.
    pub(crate) fn pairs(&self) -> usize {
        self.score_tiles() * self.instruction.d.elements / 2
    }
}
