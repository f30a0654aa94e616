//! What all ranks of a local world share: the first failure, the groups, the flight recorders, the traffic counts.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::LocalOptions;
use super::group::Group;
use crate::comm::Traffic;
use crate::comm::record::{self, Call, Operation, Record, Recorder};
use crate::error::Error;

/// Locks, whether or not another thread has panicked meanwhile: a panicking rank fails the world anyway.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shared by the communicators of all ranks.
///
/// Locks are taken in this order: groups, the state of one group, a recorder.
#[derive(Debug)]
pub(super) struct World {
    pub(super) timeout: Duration,
    failure: OnceLock<Error>,
    ranks: Vec<Rank>,
    groups: Mutex<Groups>,
}

#[derive(Debug)]
struct Rank {
    finished: AtomicBool,
    recorder: Mutex<Recorder>,
    counters: Mutex<BTreeMap<String, Arc<Counters>>>,
}

#[derive(Debug, Default)]
struct Groups {
    /// Groups made so far.
    made: u64,
    /// Groups that may have waiting members.
    live: Vec<Weak<Group>>,
    /// Groups that some of their members have not joined yet.
    forming: HashMap<GroupKey, Arc<Group>>,
}

/// What the members of a sub-group agree on when they make it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct GroupKey {
    /// Number of the parent group.
    pub(super) parent: u64,
    /// Label of the new group.
    pub(super) label: String,
    /// World ranks.
    pub(super) members: Vec<usize>,
    /// How many groups with the same parent, label and members the caller has made before.
    pub(super) instance: u64,
}

/// Calls and bytes of one rank under one label, by operation.
#[derive(Debug, Default)]
pub(super) struct Counters([(AtomicU64, AtomicU64); Operation::ALL.len()]);

impl Counters {
    /// Counts one call.
    pub(super) fn add(&self, operation: Operation, bytes: usize) {
        let (calls, total) = &self.0[operation as usize];
        calls.fetch_add(1, Ordering::Relaxed);
        total.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl World {
    pub(super) fn new(size: usize, options: &LocalOptions) -> Self {
        let origin = Instant::now();
        let rank = |rank| Rank {
            finished: AtomicBool::new(false),
            recorder: Mutex::new(Recorder::new(rank, origin, options.records)),
            counters: Mutex::default(),
        };
        Self {
            timeout: options.timeout,
            failure: OnceLock::new(),
            ranks: (0..size).map(rank).collect(),
            groups: Mutex::default(),
        }
    }

    /// The first failure, if there is one.
    pub(super) fn failure(&self) -> Option<&Error> {
        self.failure.get()
    }

    /// Marks the world as failed and wakes all that wait. Returns the first failure.
    pub(super) fn fail(&self, error: Error) -> Error {
        if self.failure.set(error.clone()).is_ok() {
            self.wake();
        }
        self.failure.get().cloned().unwrap_or(error)
    }

    /// Notes that a rank has returned and will take part in nothing any more.
    pub(super) fn finish(&self, rank: usize) {
        self.ranks[rank].finished.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether a rank has returned.
    pub(super) fn finished(&self, rank: usize) -> bool {
        self.ranks[rank].finished.load(Ordering::Acquire)
    }

    fn wake(&self) {
        let live: Vec<_> = lock(&self.groups)
            .live
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        live.iter().for_each(|group| group.wake());
    }

    /// A group of all ranks.
    pub(super) fn everyone(&self) -> Arc<Group> {
        let members = (0..self.ranks.len()).collect();
        let group = lock(&self.groups).make("world", members);
        (0..self.ranks.len()).for_each(|rank| {
            group.join(rank);
        });
        group
    }

    /// Makes world rank `members[me]` a member of the group that `key` names.
    pub(super) fn join(&self, key: GroupKey, me: usize) -> Arc<Group> {
        let mut groups = lock(&self.groups);
        let group = match groups.forming.remove(&key) {
            Some(group) => group,
            None => groups.make(&key.label, key.members.clone()),
        };
        if !group.join(me) {
            groups.forming.insert(key, Arc::clone(&group));
        }
        group
    }

    /// Records that a rank begins a call; returns the ticket for [`end`](Self::end).
    pub(super) fn begin(&self, rank: usize, group: u64, call: Call) -> u64 {
        lock(&self.ranks[rank].recorder).begin(group, call)
    }

    /// Records that a rank's call is complete.
    pub(super) fn end(&self, rank: usize, ticket: u64, result: &crate::comm::Buffer) {
        lock(&self.ranks[rank].recorder).finish(ticket, result);
    }

    /// The last thing that a rank did, in words.
    pub(super) fn last_operation(&self, rank: usize) -> String {
        match lock(&self.ranks[rank].recorder).last() {
            Some(record) => format!("last operation: {record}"),
            None => "no operation recorded".into(),
        }
    }

    /// All flight records as text.
    pub(super) fn dump(&self) -> String {
        let records = |rank: &Rank| lock(&rank.recorder).records();
        record::dump(&self.ranks.iter().map(records).collect::<Vec<Vec<Record>>>())
    }

    /// The counters of a rank under a label.
    pub(super) fn counters(&self, rank: usize, label: &str) -> Arc<Counters> {
        let mut counters = lock(&self.ranks[rank].counters);
        Arc::clone(counters.entry(label.to_owned()).or_default())
    }

    /// All counts of a rank that are not zero, by label, then operation.
    pub(super) fn traffic(&self, rank: usize) -> Vec<Traffic> {
        let mut traffic = Vec::new();
        for (label, counters) in lock(&self.ranks[rank].counters).iter() {
            for (operation, (calls, bytes)) in Operation::ALL.iter().zip(&counters.0) {
                let calls = calls.load(Ordering::Relaxed);
                if calls > 0 {
                    traffic.push(Traffic {
                        group: label.clone(),
                        operation: operation.name(),
                        calls,
                        bytes: bytes.load(Ordering::Relaxed),
                    });
                }
            }
        }
        traffic
    }
}

impl Groups {
    fn make(&mut self, label: &str, members: Vec<usize>) -> Arc<Group> {
        let group = Arc::new(Group::new(self.made, label, members));
        self.made += 1;
        self.live.retain(|group| group.strong_count() > 0);
        self.live.push(Arc::downgrade(&group));
        group
    }
}
