//! How a rank's parameters lie in buckets, and which replica owns which piece. Plain data.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};

use crate::error::{Error, Result};
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
    /// It keeps its value: it has no gradient, and lies in no bucket.
    pub frozen: bool,
    /// Its gradients, which backward passes and the reducer add up.
    pub sum: GradientSum,
}

impl Slot {
    /// A parameter of `count` local elements in `chunk`. `tied`: the name of a parameter that another stage holds as well.
    pub fn new(spec: Arc<ParameterSpec>, count: usize, chunk: usize, tied: Option<&str>) -> Self {
        let class = Class {
            group: 0,
            whole: false,
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
            frozen: false,
            sum: GradientSum::default(),
        }
    }
}

/// What the elements of a bucket have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class {
    /// Number of the optimiser's parameter group.
    pub group: usize,
    /// They are updated whole, each by one replica: no piece of the bucket ends inside one.
    pub whole: bool,
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
    /// Slots and where they start, in order. What lies between them and at the end is zero.
    pub slots: Vec<(usize, usize)>,
    /// Elements, a multiple of the replicas.
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

/// Where a stage's parameters are, if it has any.
pub fn device<M: Module>(chunks: &mut [M]) -> Option<Device> {
    struct First(Option<Device>);
    impl Visitor for First {
        fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
            self.0.get_or_insert_with(|| p.value.device());
        }
    }
    let mut first = First(None);
    chunks.iter_mut().for_each(|chunk| chunk.visit(&mut first));
    first.0
}

/// Gives every parameter that is trained its slot's sum.
///
/// # Errors
/// A parameter that has one already.
pub fn share_sums<M: Module>(chunks: &mut [M], slots: &[Slot]) -> Result<()> {
    struct Share<'a> {
        sums: HashMap<&'a str, &'a GradientSum>,
        owned: Option<String>,
    }
    impl Visitor for Share<'_> {
        fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
            let Some(&sum) = self.sums.get(p.spec.name.as_str()) else {
                return;
            };
            // A parameter that two places of a module share is seen twice.
            if p.sum.as_ref().is_some_and(|own| !own.is(sum)) {
                self.owned = Some(p.spec.name.clone());
            } else {
                p.sum = Some(sum.clone());
            }
        }
    }
    let trained = slots.iter().filter(|slot| !slot.frozen);
    let sums = trained.map(|slot| (slot.spec.name.as_str(), &slot.sum));
    let mut share = Share {
        sums: sums.collect(),
        owned: None,
    };
    for module in chunks {
        module.visit(&mut share);
    }
    match share.owned {
        Some(name) => Err(Error::config(
            format!("{name} has an optimiser already"),
            "give every optimiser a selection of its own parameters, or one optimiser several parameter groups",
        )),
        None => Ok(()),
    }
}

/// Packs the slots that are trained into buckets of at most `limit` elements (a larger slot fills one alone), in the order in
/// which a backward pass finishes them.
///
/// Where parameters are updated whole, the replicas share a bucket's parameters instead of its elements, and it is as long as
/// the largest share times the replicas. A bucket may then hold more than `limit`: as many as make shares alike.
pub fn buckets(slots: &[Slot], replicas: usize, limit: usize) -> Vec<Bucket> {
    let trained = || slots.iter().enumerate().filter(|(_, slot)| !slot.frozen);
    let mut largest: HashMap<(usize, Class), usize> = HashMap::new();
    for (_, slot) in trained() {
        let most = largest.entry((slot.chunk, slot.class)).or_default();
        *most = slot.count.max(*most);
    }
    let mut buckets: Vec<Bucket> = Vec::new();
    let mut open: HashMap<(usize, Class), usize> = HashMap::new();
    for (i, slot) in trained().rev() {
        let key = (slot.chunk, slot.class);
        let limit = match slot.class.whole {
            true => limit.max(replicas * largest[&key]),
            false => limit,
        };
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
        if bucket.class.whole {
            share_out(bucket, slots, replicas);
        } else {
            bucket.len = bucket.len.next_multiple_of(replicas);
        }
    }
    buckets
}

/// Moves a bucket's slots so that each lies in one replica's piece: the largest first, each to the replica with least.
fn share_out(bucket: &mut Bucket, slots: &[Slot], replicas: usize) {
    let mut order: Vec<usize> = bucket.slots.iter().map(|&(slot, _)| slot).collect();
    order.sort_by_key(|&slot| std::cmp::Reverse(slots[slot].count));
    let mut shares: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); replicas];
    for slot in order {
        if let Some((filled, share)) = shares.iter_mut().min_by_key(|(filled, _)| *filled) {
            *filled += slots[slot].count;
            share.push(slot);
        }
    }
    let piece = shares.iter().map(|(filled, _)| *filled).max().unwrap_or(0);
    bucket.len = piece * replicas;
    bucket.slots.clear();
    for (replica, (_, share)) in shares.into_iter().enumerate() {
        let mut offset = replica * piece;
        for slot in share {
            bucket.slots.push((slot, offset));
            offset += slots[slot].count;
        }
    }
}

/// One run of `len` elements from runs that begin at the given places, in order; zeros between them and at the end.
pub(crate) fn join(
    runs: impl IntoIterator<Item = (usize, Tensor<1>)>,
    len: usize,
    (device, dtype): (&Device, DType),
) -> Tensor<1> {
    let zeros = |n: usize| Tensor::<1>::zeros([n], (device, dtype));
    let (mut parts, mut end) = (Vec::new(), 0);
    for (offset, run) in runs {
        if offset > end {
            parts.push(zeros(offset - end));
        }
        end = offset + run.dims()[0];
        parts.push(run);
    }
    if end < len {
        parts.push(zeros(len - end));
    }
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameter::Init;
    use proptest::prelude::*;

    fn slot(name: usize, count: usize, chunk: usize, decay: bool) -> Slot {
        let spec = ParameterSpec {
            name: name.to_string(),
            shape: vec![count],
            placement: Placement::Replicated,
            gradient: Placement::Replicated,
            init: Init::Constant(0.0),
            decay,
        };
        Slot::new(Arc::new(spec), count, chunk, None)
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

        #[test]
        fn a_parameter_that_is_updated_whole_lies_in_one_replicas_piece(
            sizes in prop::collection::vec((1usize..50, 0usize..2), 1..20),
            replicas in 1usize..5,
            limit in 1usize..100,
        ) {
            let whole = |(i, &(n, chunk)): (usize, &(usize, usize))| {
                let mut slot = slot(i, n, chunk, true);
                slot.class.whole = true;
                slot
            };
            let slots: Vec<Slot> = sizes.iter().enumerate().map(whole).collect();
            let mut seen = vec![0; slots.len()];
            for bucket in buckets(&slots, replicas, limit) {
                let (mut end, mut used, mut largest) = (0, 0, 0);
                for &(slot, offset) in &bucket.slots {
                    let count = slots[slot].count;
                    prop_assert!(offset >= end);
                    end = offset + count;
                    let inside = (0..replicas).map(|r| bucket.piece(r, replicas));
                    prop_assert_eq!(inside.filter(|p| p.start <= offset && end <= p.end).count(), 1);
                    (used, largest) = (used + count, count.max(largest));
                    seen[slot] += 1;
                }
                prop_assert!(end <= bucket.len && bucket.len.is_multiple_of(replicas));
                // No replica has more than its part and the largest parameter.
                prop_assert!(bucket.len <= used + replicas * largest);
            }
            prop_assert!(seen.iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn a_frozen_parameter_lies_in_no_bucket() {
        let mut slots = vec![slot(0, 3, 0, true), slot(1, 4, 0, true)];
        slots[0].frozen = true;
        let buckets = buckets(&slots, 2, 100);
        assert_eq!(buckets.len(), 1);
        assert_eq!((&buckets[0].slots[..], buckets[0].len), (&[(1, 0)][..], 4));
    }
}
