//! What a collective operation costs, by the links that it crosses.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::mesh::MAX_RANKS;

/// A link of one class, as one rank sees it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// What a rank sustains to its neighbour in a ring, one direction, in GB/s.
    pub gbs: f64,
    /// Latency of one hop, in microseconds.
    pub us: f64,
}

/// The network of a node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Adapters of a node.
    pub nics: usize,
    /// Data-sheet bandwidth of one adapter, one direction, in GB/s.
    pub nic_gbs: f64,
    /// Share of it that collectives reach.
    pub efficiency: f64,
    /// Share of it that messages from one rank to one other reach.
    pub message_efficiency: f64,
    /// Latency of one hop, in microseconds.
    pub us: f64,
}

/// How the ranks of a group pass data on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Around a ring: least data, latency by the number of ranks.
    Ring,
    /// Up and down a tree: latency by the logarithm of the number of ranks.
    Tree,
    /// Inside every node, then between nodes, each rank with its peers there.
    Hierarchical,
}

/// A collective operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collective {
    /// Every rank gets the sum.
    AllReduce,
    /// Every rank gets all parts.
    AllGather,
    /// Every rank gets its part of the sum.
    ReduceScatter,
}

/// All links of a machine, and the algorithms that its library chooses from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// Ranks on one card.
    pub ranks_per_card: usize,
    /// Ranks in one node.
    pub ranks_per_node: usize,
    /// The library takes the fastest of these.
    pub algorithms: Vec<Algorithm>,
    /// Between the ranks of a card.
    pub card: Link,
    /// Between cards of a node.
    pub node: Link,
    /// Between nodes.
    pub network: Network,
}

/// A group of ranks at equal distance, among others of its kind that communicate at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Ranks of the group.
    pub ranks: usize,
    /// Distance between neighbours in the numbering of the world.
    pub stride: usize,
}

impl Links {
    pub(super) fn validate(&self) -> Result<()> {
        let (card, node) = (self.ranks_per_card, self.ranks_per_node);
        if node > MAX_RANKS {
            return Err(Error::config(
                format!("links.ranks_per_node is {node}"),
                format!("use at most {MAX_RANKS}"),
            ));
        }
        if card == 0 || !node.is_multiple_of(card) || node == 0 || self.network.nics == 0 {
            return Err(Error::config(
                format!(
                    "a node of {node} ranks (links.ranks_per_node) on cards of {card} (links.ranks_per_card) with {} adapters cannot be",
                    self.network.nics
                ),
                "give every count at least 1, and whole cards",
            ));
        }
        if self.algorithms.is_empty() {
            return Err(Error::config(
                "links.algorithms is empty",
                "name at least one of ring, tree and hierarchical",
            ));
        }
        Ok(())
    }

    /// Ranks of `group` that share a node.
    fn in_node(&self, group: Group) -> usize {
        (self.ranks_per_node / group.stride).clamp(1, group.ranks)
    }

    /// One hop of a ring through `group`: GB/s, and microseconds.
    fn hop(&self, group: Group) -> (f64, f64) {
        let span = group.ranks * group.stride;
        if span <= self.ranks_per_card {
            return (self.card.gbs, self.card.us);
        }
        if span <= self.ranks_per_node {
            return (self.node.gbs, self.node.us);
        }
        let share = self.network_gbs() / self.rings(group);
        (share.min(self.node.gbs), self.network.us)
    }

    /// Rings through groups such as `group` that leave a node, each once.
    fn rings(&self, group: Group) -> f64 {
        self.ranks_per_node as f64 / self.in_node(group) as f64
    }

    /// What the adapters of a node sustain together, one direction, in GB/s.
    pub fn network_gbs(&self) -> f64 {
        self.network.nics as f64 * self.network.nic_gbs * self.network.efficiency
    }

    /// Seconds of an operation on `bytes` bytes (of the whole: what every rank has at the end of a gather).
    pub fn collective(&self, what: Collective, bytes: f64, group: Group) -> f64 {
        if group.ranks < 2 || bytes <= 0.0 {
            return 0.0;
        }
        self.algorithms
            .iter()
            .map(|algorithm| self.by(*algorithm, what, bytes, group))
            .fold(f64::INFINITY, f64::min)
    }

    fn by(&self, algorithm: Algorithm, what: Collective, bytes: f64, group: Group) -> f64 {
        let (gbs, us) = self.hop(group);
        let (n, per_byte, hop) = (group.ranks as f64, 1e-9 / gbs, 1e-6 * us);
        let passes = if what == Collective::AllReduce {
            2.0
        } else {
            1.0
        };
        let ring = passes * ((n - 1.0) / n * bytes * per_byte + (n - 1.0) * hop);
        let inside = self.in_node(group);
        match algorithm {
            Algorithm::Ring => ring,
            // Trees are pipelined: two of them share the data, so the bandwidth is the ring's.
            Algorithm::Tree if what == Collective::AllReduce => {
                passes * (bytes * per_byte + n.log2().ceil() * hop)
            }
            Algorithm::Hierarchical if inside > 1 && inside < group.ranks => {
                let node = Group {
                    ranks: inside,
                    ..group
                };
                let across = Group {
                    ranks: group.ranks.div_ceil(inside),
                    stride: group.stride * inside,
                };
                let between = self.by(Algorithm::Ring, what, bytes / inside as f64, across);
                let half = self.by(Algorithm::Ring, Collective::AllGather, bytes, node);
                between + passes * half
            }
            Algorithm::Tree | Algorithm::Hierarchical => ring,
        }
    }

    /// Seconds until every rank of `group`, and of all groups beside it, has sent `bytes` bytes to its neighbour in a ring.
    pub fn shift(&self, bytes: f64, group: Group) -> f64 {
        if group.ranks < 2 || bytes <= 0.0 {
            return 0.0;
        }
        let (mut gbs, us) = self.hop(group);
        if group.ranks * group.stride > self.ranks_per_node {
            let all = self.network.nics as f64 * self.network.nic_gbs;
            let share = all * self.network.message_efficiency / self.rings(group);
            gbs = share.min(self.node.gbs);
        }
        bytes * 1e-9 / gbs + 1e-6 * us
    }

    /// Seconds until every rank of `group`, and of all groups beside it, has sent each other rank its share of `bytes` bytes:
    /// what stays in the node and what leaves it travel at the same time.
    pub fn all_to_all(&self, bytes: f64, group: Group) -> f64 {
        if group.ranks < 2 || bytes <= 0.0 {
            return 0.0;
        }
        let (n, inside) = (group.ranks as f64, self.in_node(group) as f64);
        let on_card = group.ranks * group.stride <= self.ranks_per_card;
        let link = if on_card { self.card } else { self.node };
        let near = bytes * (inside - 1.0) / n / link.gbs;
        let far = bytes * (n - inside) / n * self.ranks_per_node as f64 / self.network_gbs();
        near.max(far) * 1e-9 + 1e-6 * (n - 1.0) * self.hop(group).1
    }

    /// Seconds of a message to the next pipeline stage, `stride` ranks away, which all `stride` ranks of a stage send at
    /// the same time, in a world of `world` ranks.
    pub fn message(&self, bytes: f64, stride: usize, world: usize) -> f64 {
        let (gbs, us) = if world <= self.ranks_per_node {
            (self.node.gbs, self.node.us)
        } else {
            let senders = stride.min(self.ranks_per_node) as f64;
            let all = self.network.nics as f64 * self.network.nic_gbs;
            let share = all * self.network.message_efficiency / senders;
            (share.min(self.node.gbs), self.network.us)
        };
        bytes * 1e-9 / gbs + 1e-6 * us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(algorithms: &[Algorithm]) -> Links {
        let link = |gbs, us| Link { gbs, us };
        Links {
            ranks_per_card: 2,
            ranks_per_node: 8,
            algorithms: algorithms.to_vec(),
            card: link(200.0, 5.0),
            node: link(100.0, 5.0),
            network: Network {
                nics: 4,
                nic_gbs: 25.0,
                efficiency: 0.8,
                message_efficiency: 0.8,
                us: 10.0,
            },
        }
    }

    fn seconds(links: &Links, ranks: usize, stride: usize) -> f64 {
        links.collective(Collective::AllReduce, 1e9, Group { ranks, stride })
    }

    #[test]
    fn a_ring_moves_the_data_over_the_slowest_link_that_it_crosses() {
        let links = links(&[Algorithm::Ring]);
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9);
        close(seconds(&links, 2, 1), 1.0 / 200.0 + 2.0 * 5e-6);
        close(seconds(&links, 8, 1), 1.75 / 100.0 + 14.0 * 5e-6);
        // Two nodes, one ring: all adapters are its own. With eight rings they are shared.
        close(seconds(&links, 16, 1), 1.875 / 80.0 + 30.0 * 1e-5);
        close(seconds(&links, 2, 8), 1.0 / 10.0 + 2.0 * 1e-5);
        assert_eq!(seconds(&links, 1, 1), 0.0);
    }

    #[test]
    fn what_goes_around_a_ring_or_to_all_takes_the_slowest_link_on_its_way() {
        let links = links(&[Algorithm::Ring]);
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9);
        let group = |ranks, stride| Group { ranks, stride };
        close(links.shift(1e9, group(2, 1)), 1.0 / 200.0 + 5e-6);
        close(links.shift(1e9, group(4, 2)), 1.0 / 100.0 + 5e-6);
        // Two rings leave the node and share 80 GB/s.
        close(links.shift(1e9, group(8, 2)), 1.0 / 40.0 + 1e-5);
        close(
            links.all_to_all(1e9, group(8, 1)),
            0.875 / 100.0 + 7.0 * 5e-6,
        );
        // Half of what eight ranks send leaves the node.
        close(
            links.all_to_all(1e9, group(16, 1)),
            0.5 * 8.0 / 80.0 + 15.0 * 1e-5,
        );
        assert_eq!(
            links.shift(1e9, group(1, 1)) + links.all_to_all(1e9, group(1, 1)),
            0.0
        );
    }

    #[test]
    fn latency_grows_with_the_ranks_of_a_ring_and_little_in_a_hierarchy() {
        let small = |algorithm, ranks| {
            let group = Group { ranks, stride: 1 };
            links(&[algorithm]).collective(Collective::AllGather, 1e3, group)
        };
        let ring = small(Algorithm::Ring, 2048) / small(Algorithm::Ring, 64);
        assert!(ring > 20.0, "{ring}");
        // arXiv 2312.12705 cites up to 33x for an all-gather over 2,048 GCDs; the model's bound is the ranks of a node.
        let gain = small(Algorithm::Ring, 2048) / small(Algorithm::Hierarchical, 2048);
        assert!((7.0..=33.0).contains(&gain), "{gain}");
        assert_eq!(small(Algorithm::Tree, 64), small(Algorithm::Ring, 64));
    }
}
