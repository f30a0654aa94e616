//! The device mesh: which rank stands where. The only file that knows the order of ranks.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Most ranks of a layout: more than any machine has, and few enough to look at each.
pub const MAX_RANKS: usize = 1 << 20;

/// How many ranks share a layer (tensor parallel), how many stages a pipeline has, how many replicas there are.
///
/// Made by naming what is not 1: `Layout { dp: 4, ..Layout::single() }`.
///
/// Ranks are numbered as Megatron-LM numbers them: tensor parallel fastest, then data, then pipeline,
/// `rank = tp + TP * (dp + DP * pp)`, so that the ranks that talk most are neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layout {
    /// Tensor-parallel ranks: each holds a slice of every layer.
    pub tp: usize,
    /// Pipeline stages: each holds some of the layers.
    pub pp: usize,
    /// Data-parallel replicas: each sees other samples.
    pub dp: usize,
}

/// Where a rank stands in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Coordinate {
    /// Tensor-parallel index, `0..tp`.
    pub tp: usize,
    /// Pipeline stage, `0..pp`.
    pub pp: usize,
    /// Data-parallel replica, `0..dp`.
    pub dp: usize,
}

impl Default for Layout {
    fn default() -> Self {
        Self::single()
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tp {} x pp {} x dp {}", self.tp, self.pp, self.dp)
    }
}

impl Layout {
    /// The layout, if there is such a mesh: its fields may say anything.
    ///
    /// # Errors
    /// A size of zero, or more than [`MAX_RANKS`] ranks.
    pub fn validated(self) -> Result<Self> {
        let Self { tp, pp, dp } = self;
        if tp == 0 || pp == 0 || dp == 0 {
            return Err(Error::config(
                format!("a layout of tp {tp}, pp {pp}, dp {dp} has no ranks"),
                "every one of tp, pp and dp must be at least 1",
            ));
        }
        let world = tp.checked_mul(pp).and_then(|n| n.checked_mul(dp));
        if world.is_none_or(|ranks| ranks > MAX_RANKS) {
            return Err(Error::config(
                format!("a layout of tp {tp}, pp {pp}, dp {dp} has more than {MAX_RANKS} ranks"),
                "use smaller numbers",
            ));
        }
        Ok(self)
    }

    /// One rank.
    pub const fn single() -> Self {
        Self {
            tp: 1,
            pp: 1,
            dp: 1,
        }
    }

    /// Number of ranks.
    pub const fn world(&self) -> usize {
        self.tp * self.pp * self.dp
    }

    /// Where `rank` stands.
    pub const fn coordinate(&self, rank: usize) -> Coordinate {
        Coordinate {
            tp: rank % self.tp,
            dp: rank / self.tp % self.dp,
            pp: rank / self.tp / self.dp,
        }
    }

    /// The rank that stands at `at`.
    pub const fn rank(&self, at: Coordinate) -> usize {
        at.tp + self.tp * (at.dp + self.dp * at.pp)
    }

    /// The ranks that share `at`'s layers, in tensor-parallel order.
    pub fn tp_group(&self, at: Coordinate) -> Vec<usize> {
        (0..self.tp)
            .map(|tp| self.rank(Coordinate { tp, ..at }))
            .collect()
    }

    /// The ranks of `at`'s pipeline, first stage first.
    pub fn pp_group(&self, at: Coordinate) -> Vec<usize> {
        (0..self.pp)
            .map(|pp| self.rank(Coordinate { pp, ..at }))
            .collect()
    }

    /// The ranks that hold the same parameters as `at`, in replica order.
    pub fn dp_group(&self, at: Coordinate) -> Vec<usize> {
        (0..self.dp)
            .map(|dp| self.rank(Coordinate { dp, ..at }))
            .collect()
    }

    /// First and last rank of `at`'s pipeline: the ranks that both hold a tied token embedding. One rank when `pp` is 1.
    pub fn embedding_group(&self, at: Coordinate) -> Vec<usize> {
        let pipeline = self.pp_group(at);
        match pipeline.as_slice() {
            [only] => vec![*only],
            [first, .., last] => vec![*first, *last],
            [] => vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_and_coordinate_are_inverse_and_tp_is_fastest() {
        let layout = Layout {
            tp: 2,
            pp: 3,
            dp: 4,
        };
        for rank in 0..layout.world() {
            assert_eq!(layout.rank(layout.coordinate(rank)), rank);
        }
        let at = layout.coordinate(0);
        assert_eq!(layout.tp_group(at), [0, 1]);
        assert_eq!(layout.dp_group(at), [0, 2, 4, 6]);
        assert_eq!(layout.pp_group(at), [0, 8, 16]);
        assert_eq!(layout.embedding_group(at), [0, 16]);
    }

    #[test]
    fn the_groups_of_one_kind_partition_the_world() {
        let layout = Layout {
            tp: 4,
            pp: 2,
            dp: 3,
        };
        for group in [Layout::tp_group, Layout::pp_group, Layout::dp_group] {
            let mut seen: Vec<usize> = (0..layout.world())
                .filter(|&rank| group(&layout, layout.coordinate(rank))[0] == rank)
                .flat_map(|rank| group(&layout, layout.coordinate(rank)))
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..layout.world()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_layout_without_ranks_or_with_absurdly_many_is_refused() {
        let refusal = |tp, pp, dp| Layout { tp, pp, dp }.validated().unwrap_err().to_string();
        let error = refusal(2, 0, 1);
        assert!(error.contains("at least 1"), "{error}");
        for (tp, pp, dp) in [
            (1, 1, MAX_RANKS + 1),
            (1 << 40, 1 << 40, 1),
            (1024, 1024, 2),
        ] {
            let error = refusal(tp, pp, dp);
            assert!(error.contains("more than 1048576 ranks"), "{error}");
        }
        assert_eq!(
            Layout {
                tp: 1024,
                pp: 1024,
                ..Layout::single()
            }
            .world(),
            MAX_RANKS
        );
    }
}
