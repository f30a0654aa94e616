//! A communicator: what one thread holds of a local group.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::elements;
use super::group::{Group, Parts};
use super::world::{Counters, GroupKey, World, lock};
use crate::comm::record::{Call, Operation};
use crate::comm::{Buffer, Communicator, Reduction, Traffic};
use crate::error::{Error, Result};

/// From this number of elements on, an all-reduce lets each rank reduce its own share and then gathers the shares;
/// below, the second rendezvous would cost more than adding everything everywhere.
const SHARED_WORK: usize = 4096;

/// One member of a group of threads.
pub(super) struct Member {
    world: Arc<World>,
    group: Arc<Group>,
    /// Rank in the group.
    rank: usize,
    world_rank: usize,
    /// Whether a collective is in progress.
    busy: AtomicBool,
    /// Collectives so far.
    sequence: AtomicU64,
    /// Messages so far, by operation and peer.
    messages: Mutex<HashMap<(Operation, usize), u64>>,
    /// Sub-groups so far, by label and ranks.
    subgroups: Mutex<HashMap<(String, Vec<usize>), u64>>,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Group { label, members, .. } = &*self.group;
        write!(
            f,
            "rank {} of ranks {members:?} in group `{label}`",
            self.world_rank
        )
    }
}

impl Member {
    /// Member `rank` of a group that it has joined.
    pub(super) fn new(world: &Arc<World>, group: &Arc<Group>, rank: usize) -> Self {
        let world_rank = group.members[rank];
        Self {
            world: Arc::clone(world),
            group: Arc::clone(group),
            rank,
            world_rank,
            busy: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            messages: Mutex::default(),
            subgroups: Mutex::default(),
            counters: world.counters(world_rank, &group.label),
        }
    }

    pub(super) fn world_rank(&self) -> usize {
        self.world_rank
    }

    fn error(&self, what: String, remedy: &str) -> Error {
        Error::communication(self.world_rank, what, remedy)
    }

    /// The world's failure as an error.
    fn check(&self) -> Result<()> {
        self.world
            .failure()
            .map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Runs a part of an operation; its failure is the world's.
    fn guard<R>(&self, part: impl FnOnce() -> Result<R>) -> Result<R> {
        self.check()?;
        part().map_err(|error| self.world.fail(error))
    }

    /// World rank of a rank of the group.
    fn peer(&self, operation: Operation, rank: usize) -> Result<usize> {
        self.group.members.get(rank).copied().ok_or_else(|| {
            let (name, size, label) = (operation.name(), self.size(), &self.group.label);
            let what = format!("{name}: group `{label}` of {size} ranks has no rank {rank}");
            self.error(what, &format!("use a rank in 0..{size}"))
        })
    }

    /// What can be said against a call on which all members agree.
    fn validate(&self, call: &Call) -> Result<()> {
        let size = self.size();
        let divides = matches!(
            call.operation,
            Operation::ReduceScatter | Operation::AllToAll
        );
        match call.data {
            Some(("u8", _)) if call.reduction == Some(Reduction::Sum) => Err(self.error(
                format!("{call}: bytes cannot be summed"),
                "convert them to i64",
            )),
            Some((_, count)) if divides && count % size != 0 => {
                let what = format!("{call}: {count} elements are not {size} equal pieces");
                Err(self.error(what, &format!("pad to a multiple of {size} elements")))
            }
            _ => Ok(()),
        }
    }

    /// A collective: meets all members, then makes the result of what each has brought.
    ///
    /// A group of one meets nobody, so the result is `data`, and there is nothing to record.
    fn collective(
        &self,
        operation: Operation,
        reduction: Option<Reduction>,
        root: Option<usize>,
        data: Buffer,
        finish: impl FnOnce(&Call, Parts) -> Result<Buffer>,
    ) -> Result<Buffer> {
        self.guard(|| {
            if self.busy.swap(true, Ordering::Acquire) {
                let (name, label) = (operation.name(), &self.group.label);
                let what = format!("{name} while another thread is in a collective of `{label}`");
                return Err(self.error(what, "give every thread its own sub-group"));
            }
            let call = Call {
                label: Arc::clone(&self.group.label),
                sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
                operation,
                data: (operation != Operation::Barrier).then(|| (data.dtype(), data.len())),
                reduction,
                peer: root.map(|root| self.peer(operation, root)).transpose()?,
            };
            let given = data.bytes();
            let result = if self.size() == 1 {
                self.validate(&call)?;
                data
            } else {
                let ticket = self
                    .world
                    .begin(self.world_rank, self.group.id, call.clone());
                let parts = self.exchange(&call, Arc::new(data))?;
                self.validate(&call)?;
                let result = finish(&call, parts)?;
                self.world.end(self.world_rank, ticket, &result);
                result
            };
            let bytes = if operation == Operation::Broadcast {
                result.bytes()
            } else {
                given
            };
            self.counters.add(operation, bytes);
            self.busy.store(false, Ordering::Release);
            Ok(result)
        })
    }

    fn exchange(&self, call: &Call, data: Arc<Buffer>) -> Result<Parts> {
        self.group.exchange(&self.world, self.rank, call, data)
    }

    /// Elements of the `piece`-th of `size` almost equal pieces of `count` elements.
    fn piece(&self, count: usize, piece: usize) -> std::ops::Range<usize> {
        let size = self.size();
        let begin = |piece| count / size * piece + (count % size).min(piece);
        begin(piece)..begin(piece + 1)
    }

    /// The call of the next message to or from a peer.
    fn message(&self, operation: Operation, peer: usize, data: Option<&Buffer>) -> Result<Call> {
        let peer = self.peer(operation, peer)?;
        let mut messages = lock(&self.messages);
        let sequence = messages.entry((operation, peer)).or_default();
        *sequence += 1;
        Ok(Call {
            label: Arc::clone(&self.group.label),
            sequence: *sequence,
            operation,
            data: data.map(|data| (data.dtype(), data.len())),
            reduction: None,
            peer: Some(peer),
        })
    }
}

impl Communicator for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.members.len()
    }

    fn members(&self) -> &[usize] {
        &self.group.members
    }

    fn label(&self) -> &str {
        &self.group.label
    }

    fn all_reduce(&self, data: Buffer, reduction: Reduction) -> Result<Buffer> {
        let count = data.len();
        let finish = |call: &Call, parts: Parts| {
            if count < SHARED_WORK {
                return elements::reduce(&parts, 0..count, reduction);
            }
            let mine = Arc::clone(&parts[self.rank]);
            let share = elements::reduce(&parts, self.piece(count, self.rank), reduction)?;
            drop(parts);
            let shares = self.exchange(call, Arc::new(share))?;
            // All have reduced and let go of what this rank brought, so the result takes its place without a copy.
            let mut result = Arc::unwrap_or_clone(mine);
            elements::overwrite(&mut result, &shares)?;
            Ok(result)
        };
        self.collective(Operation::AllReduce, Some(reduction), None, data, finish)
    }

    fn reduce_scatter(&self, data: Buffer) -> Result<Buffer> {
        let piece = self.piece(data.len(), self.rank);
        let sum = Reduction::Sum;
        self.collective(
            Operation::ReduceScatter,
            Some(sum),
            None,
            data,
            |_, parts| elements::reduce(&parts, piece, sum),
        )
    }

    fn all_gather(&self, data: Buffer) -> Result<Buffer> {
        self.collective(Operation::AllGather, None, None, data, |_, parts| {
            elements::concat(&parts, |part| 0..part.len())
        })
    }

    fn all_to_all(&self, data: Buffer) -> Result<Buffer> {
        let piece = self.piece(data.len(), self.rank);
        self.collective(Operation::AllToAll, None, None, data, |_, parts| {
            elements::concat(&parts, |_| piece.clone())
        })
    }

    fn broadcast(&self, data: Buffer, root: usize) -> Result<Buffer> {
        self.collective(Operation::Broadcast, None, Some(root), data, |_, parts| {
            let source = Arc::clone(&parts[root]);
            drop(parts);
            Ok(Arc::unwrap_or_clone(source))
        })
    }

    fn send(&self, data: Buffer, to: usize) -> Result<()> {
        self.guard(|| {
            let call = self.message(Operation::Send, to, Some(&data))?;
            let ticket = self.world.begin(self.world_rank, self.group.id, call);
            self.world.end(self.world_rank, ticket, &data);
            self.counters.add(Operation::Send, data.bytes());
            self.group.post(self.rank, to, data);
            Ok(())
        })
    }

    fn recv(&self, from: usize) -> Result<Buffer> {
        self.guard(|| {
            let call = self.message(Operation::Recv, from, None)?;
            let ticket = self
                .world
                .begin(self.world_rank, self.group.id, call.clone());
            let data = self.group.take(&self.world, self.rank, &call, from)?;
            self.world.end(self.world_rank, ticket, &data);
            self.counters.add(Operation::Recv, data.bytes());
            Ok(data)
        })
    }

    fn barrier(&self) -> Result<()> {
        let nothing = Buffer::U8(Vec::new());
        let finish = |_: &Call, _| Ok(Buffer::U8(Vec::new()));
        self.collective(Operation::Barrier, None, None, nothing, finish)
            .map(drop)
    }

    fn subgroup(&self, label: &str, ranks: &[usize]) -> Result<Arc<dyn Communicator>> {
        self.guard(|| {
            let parent = &self.group.label;
            let wrong = |what: String, remedy| {
                self.error(
                    format!("sub-group `{label}` of `{parent}`, {ranks:?}: {what}"),
                    remedy,
                )
            };
            let mut members = Vec::with_capacity(ranks.len());
            for &rank in ranks {
                let Some(&member) = self.group.members.get(rank) else {
                    let what = format!("`{parent}` of {} ranks has no rank {rank}", self.size());
                    return Err(wrong(what, "list ranks of the parent group"));
                };
                if members.contains(&member) {
                    return Err(wrong(format!("rank {rank} twice"), "list every rank once"));
                }
                members.push(member);
            }
            let Some(me) = ranks.iter().position(|&rank| rank == self.rank) else {
                let what = format!("the caller, rank {}, is no member", self.rank);
                return Err(wrong(what, "let only members make a sub-group"));
            };
            let mut subgroups = lock(&self.subgroups);
            let instances = subgroups
                .entry((label.to_owned(), ranks.to_vec()))
                .or_default();
            let key = GroupKey {
                parent: self.group.id,
                label: label.to_owned(),
                members,
                instance: *instances,
            };
            *instances += 1;
            let group = self.world.join(key, me);
            Ok(Arc::new(Member::new(&self.world, &group, me)) as Arc<dyn Communicator>)
        })
    }

    fn failure(&self) -> Option<Error> {
        self.world.failure().cloned()
    }

    fn fail(&self, error: Error) {
        self.world.fail(error);
    }

    fn traffic(&self) -> Vec<Traffic> {
        self.world.traffic(self.world_rank)
    }
}
