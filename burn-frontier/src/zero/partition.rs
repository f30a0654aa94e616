//! How a rank's parameters lie in buckets, and which replica owns which piece. Plain data.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::ops::gradient_sum::GradientSum;
use crate::parameter::{Module, Parameter, ParameterSpec, Visitor};
use crate::placement::Placement;

/// One of this rank's parameters. A tied table that two parts of one rank share is one slot.
#[derive(Debug, Clone)]
pub struct Slot {
    /// What is true of it everywhere.
    pub spec: Arc<ParameterSpec>,
    /// Local elements, padding included.
    pub count: usize,
    /// The chunk whose backward pass finishes its gradient.
    pub chunk: usize,
    /// How often a backward pass adds to its gradient.
    pub uses: usize,
    /// Class of the bucket it lies in.
    pub class: Class,
    /// Its gradients, which backward passes and the reducer add up.
    pub sum: GradientSum,
}

impl Slot {
    /// A parameter of `count` local elements in `chunk`. `tied`: the name of a parameter that another stage holds as well.
    pub fn new(spec: Arc<ParameterSpec>, count: usize, chunk: usize, tied: Option<&str>) -> Self {
        let class = Class {
            decay: spec.decay,
            replicated: !matches!(spec.placement, Placement::Sharded { .. }),
            partial: spec.gradient == Placement::Partial,
            tied: tied == Some(spec.name.as_str()),
        };
        Self {
            spec,
            count,
            chunk,
            uses: 1,
            class,
            sum: GradientSum::default(),
        }
    }
}

/// What the elements of a bucket have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class {
    /// Weight decay applies.
    pub decay: bool,
    /// Every tensor-parallel rank holds the same elements.
    pub replicated: bool,
    /// Every tensor-parallel rank has a summand of the gradient.
    pub partial: bool,
    /// Another stage holds the same elements and has a summand of the gradient.
    pub tied: bool,
}

/// Parameters that are reduced and updated together, as one flat run.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// What they have in common.
    pub class: Class,
    /// The chunk whose backward pass finishes them.
    pub chunk: usize,
    /// Slots and where they start, in order.
    pub slots: Vec<(usize, usize)>,
    /// Elements, padded to a multiple of the replicas.
    pub len: usize,
}

impl Bucket {
    /// The piece that replica `rank` of `ranks` owns.
    pub fn piece(&self, rank: usize, ranks: usize) -> Range<usize> {
        let piece = self.len / ranks;
        rank * piece..(rank + 1) * piece
    }
}

/// Lists a stage's parameters. `tied`: the name of a parameter that another stage holds as well, if any.
pub fn slots<M: Module>(chunks: &mut [M], tied: Option<&str>) -> Vec<Slot> {
    struct List<'a> {
        slots: Vec<Slot>,
        by_name: HashMap<String, usize>,
        chunk: usize,
        tied: Option<&'a str>,
    }
    impl Visitor for List<'_> {
        fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
            let spec = &p.spec;
            if let Some(&known) = self.by_name.get(&spec.name) {
                // The first chunk's backward pass comes last.
                self.slots[known].uses += 1;
                return;
            }
            self.by_name.insert(spec.name.clone(), self.slots.len());
            let slot = Slot::new(spec.clone(), p.count(), self.chunk, self.tied);
            self.slots.push(slot);
        }
    }
    let mut list = List {
        slots: Vec::new(),
        by_name: HashMap::new(),
        chunk: 0,
        tied,
    };
    for (chunk, module) in chunks.iter_mut().enumerate() {
        list.chunk = chunk;
        module.visit(&mut list);
    }
    list.slots
}

/// Gives every parameter its slot's sum.
pub fn share_sums<M: Module>(chunks: &mut [M], slots: &[Slot]) {
    struct Share<'a>(HashMap<&'a str, &'a GradientSum>);
    impl Visitor for Share<'_> {
        fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
            p.sum = self.0.get(p.spec.name.as_str()).copied().cloned();
        }
    }
    let sums = slots
        .iter()
        .map(|slot| (slot.spec.name.as_str(), &slot.sum));
    let mut share = Share(sums.collect());
    for module in chunks {
        module.visit(&mut share);
    }
}

/// Packs slots into buckets of at most `limit` elements (a larger slot fills one alone), in the order in which a backward
/// pass finishes them.
pub fn buckets(slots: &[Slot], replicas: usize, limit: usize) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    let mut open: HashMap<(usize, Class), usize> = HashMap::new();
    for (i, slot) in slots.iter().enumerate().rev() {
        let key = (slot.chunk, slot.class);
        let fits = |bucket: &Bucket| bucket.len + slot.count <= limit;
        let index = match open.get(&key).copied().filter(|&b| fits(&buckets[b])) {
            Some(index) => index,
            None => {
                buckets.push(Bucket {
                    class: slot.class,
                    chunk: slot.chunk,
                    slots: Vec::new(),
                    len: 0,
                });
                open.insert(key, buckets.len() - 1);
                buckets.len() - 1
            }
        };
        let bucket = &mut buckets[index];
        bucket.slots.push((i, bucket.len));
        bucket.len += slot.count;
    }
    for bucket in &mut buckets {
        bucket.len = bucket.len.next_multiple_of(replicas);
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameter::Init;
    use proptest::prelude::*;

    fn slot(name: usize, count: usize, chunk: usize, decay: bool) -> Slot {
        Slot {
            spec: Arc::new(ParameterSpec {
                name: name.to_string(),
                shape: vec![count],
                placement: Placement::Replicated,
                gradient: Placement::Replicated,
                init: Init::Constant(0.0),
                decay,
            }),
            count,
            chunk,
            uses: 1,
            class: Class {
                decay,
                replicated: true,
                partial: false,
                tied: false,
            },
            sum: GradientSum::default(),
        }
    }

    proptest! {
        #[test]
        fn every_element_lies_in_one_bucket_and_one_piece(
            sizes in prop::collection::vec((1usize..50, 0usize..2, any::<bool>()), 1..20),
            replicas in 1usize..5,
            limit in 1usize..100,
        ) {
            let slots: Vec<Slot> =
                sizes.iter().enumerate().map(|(i, &(n, chunk, decay))| slot(i, n, chunk, decay)).collect();
            let buckets = buckets(&slots, replicas, limit);
            let mut seen = vec![0; slots.len()];
            for bucket in &buckets {
                let mut end = 0;
                for &(slot, offset) in &bucket.slots {
                    prop_assert_eq!(offset, end);
                    prop_assert_eq!((slots[slot].class, slots[slot].chunk), (bucket.class, bucket.chunk));
                    end = offset + slots[slot].count;
                    seen[slot] += 1;
                }
                prop_assert!(bucket.slots.len() == 1 || end <= limit);
                let pieces: Vec<_> = (0..replicas).flat_map(|r| bucket.piece(r, replicas)).collect();
                prop_assert_eq!(pieces, (0..bucket.len).collect::<Vec<_>>());
                prop_assert!(bucket.len >= end && bucket.len < end + replicas);
            }
            prop_assert!(seen.iter().all(|&n| n == 1));
        }
    }
}
