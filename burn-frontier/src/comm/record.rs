//! Flight recorder: the last operations of every rank, for the messages that explain a failure.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Buffer, Reduction};

/// What a rank can ask of a communicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Communicator::all_reduce`](super::Communicator::all_reduce).
    AllReduce,
    /// [`Communicator::reduce_scatter`](super::Communicator::reduce_scatter).
    ReduceScatter,
    /// [`Communicator::all_gather`](super::Communicator::all_gather).
    AllGather,
    /// [`Communicator::all_to_all`](super::Communicator::all_to_all).
    AllToAll,
    /// [`Communicator::broadcast`](super::Communicator::broadcast).
    Broadcast,
    /// [`Communicator::barrier`](super::Communicator::barrier).
    Barrier,
    /// [`Communicator::send`](super::Communicator::send).
    Send,
    /// [`Communicator::recv`](super::Communicator::recv).
    Recv,
}

impl Operation {
    /// Every operation, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::AllReduce,
        Self::ReduceScatter,
        Self::AllGather,
        Self::AllToAll,
        Self::Broadcast,
        Self::Barrier,
        Self::Send,
        Self::Recv,
    ];

    /// The method's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::AllToAll => "all_to_all",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::Send => "send",
            Self::Recv => "recv",
        }
    }
}

/// One call of one rank: everything that the members of a group must agree on, and where it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Label of the group.
    pub label: Arc<str>,
    /// Number of the call, from 1: among the group's collectives, or among the messages from one rank to another.
    pub sequence: u64,
    /// What was called.
    pub operation: Operation,
    /// Element type and number of elements; none for a barrier, and for a `recv` until the message is there.
    pub data: Option<(&'static str, usize)>,
    /// How elements are combined, where they are.
    pub reduction: Option<Reduction>,
    /// World rank of the root of a broadcast, the receiver of a `send`, the sender of a `recv`.
    pub peer: Option<usize>,
}

impl Call {
    /// Whether two members of a group may meet in these calls. Counts may differ where the operation allows it.
    pub fn agrees(&self, other: &Self) -> bool {
        let counts_differ = matches!(self.operation, Operation::AllGather | Operation::Broadcast);
        let key = |call: &Self| match call.data {
            Some((dtype, _)) if counts_differ => Some((dtype, 0)),
            data => data,
        };
        self.operation == other.operation
            && key(self) == key(other)
            && self.reduction == other.reduction
            && self.peer == other.peer
    }

    /// Whether every member of the group takes part, so that calls of equal number must agree.
    fn is_collective(&self) -> bool {
        !matches!(self.operation, Operation::Send | Operation::Recv)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, number) = (self.operation.name(), self.sequence);
        write!(f, "{name} #{number}")?;
        if let Some(peer) = self.peer {
            let preposition = if self.operation == Operation::Send {
                "to"
            } else {
                "from"
            };
            write!(f, " {preposition} rank {peer}")?;
        }
        write!(f, " in group `{}`", self.label)?;
        let reduction = match self.reduction {
            Some(Reduction::Sum) => ", sum",
            Some(Reduction::Max) => ", max",
            None => "",
        };
        match self.data {
            Some((dtype, count)) => write!(f, " ({dtype} x {count}{reduction})"),
            None => Ok(()),
        }
    }
}

/// A call as the recorder keeps it.
#[derive(Debug, Clone)]
pub struct Record {
    /// World rank of the caller.
    pub rank: usize,
    /// Number of the group, equal on all its members. Groups of one label have different numbers.
    pub group: u64,
    /// The call.
    pub call: Call,
    /// When it was made, from the start of the world.
    pub started: Duration,
    /// When it was complete, if it is.
    pub finished: Option<Duration>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (started, call) = (self.started.as_secs_f64(), &self.call);
        match self.finished {
            Some(at) => {
                let took = at.saturating_sub(self.started).as_secs_f64() * 1e3;
                write!(f, "{call}, begun at {started:.3} s, done in {took:.3} ms")
            }
            None => write!(f, "{call}, begun at {started:.3} s, not done"),
        }
    }
}

/// The last records of one rank.
#[derive(Debug)]
pub(super) struct Recorder {
    rank: usize,
    origin: Instant,
    capacity: usize,
    dropped: u64,
    records: VecDeque<Record>,
}

impl Recorder {
    /// Keeps the last `capacity` calls of world rank `rank`; times count from `origin`.
    pub(super) fn new(rank: usize, origin: Instant, capacity: usize) -> Self {
        Self {
            rank,
            origin,
            capacity,
            dropped: 0,
            records: VecDeque::new(),
        }
    }

    /// Notes that a call begins. Returns its ticket for [`finish`](Self::finish).
    pub(super) fn begin(&mut self, group: u64, call: Call) -> u64 {
        let ticket = self.dropped + self.records.len() as u64;
        self.records.push_back(Record {
            rank: self.rank,
            group,
            call,
            started: self.origin.elapsed(),
            finished: None,
        });
        if self.records.len() > self.capacity {
            self.records.pop_front();
            self.dropped += 1;
        }
        ticket
    }

    /// Notes that a call is complete, and what a `recv` received.
    pub(super) fn finish(&mut self, ticket: u64, result: &Buffer) {
        let index = ticket
            .checked_sub(self.dropped)
            .and_then(|i| usize::try_from(i).ok());
        let Some(record) = index.and_then(|i| self.records.get_mut(i)) else {
            return;
        };
        record.finished = Some(self.origin.elapsed());
        if record.call.operation == Operation::Recv {
            record.call.data = Some((result.dtype(), result.len()));
        }
    }

    /// The latest call.
    pub(super) fn last(&self) -> Option<&Record> {
        self.records.back()
    }

    /// All kept calls, oldest first.
    pub(super) fn records(&self) -> Vec<Record> {
        self.records.iter().cloned().collect()
    }
}

/// The records of all ranks as text, a line a call, and for every rank where it parts from an earlier one.
pub fn dump(ranks: &[Vec<Record>]) -> String {
    let mut text = String::new();
    for record in ranks.iter().flatten() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "rank {}: {record}", record.rank);
    }
    for (i, later) in ranks.iter().enumerate() {
        if let Some(parting) = ranks[..i]
            .iter()
            .find_map(|earlier| compare(earlier, later))
        {
            let _ = writeln!(text, "{parting}");
        }
    }
    text
}

/// Where two ranks part: the first collective of a group of both in which they disagree, or that one has called and
/// the other has not. None if they agree as far as their records reach.
pub fn compare(a: &[Record], b: &[Record]) -> Option<String> {
    let (a, b) = (by_group(a), by_group(b));
    let shared = a
        .iter()
        .filter_map(|(group, calls)| Some((calls, b.get(group)?)));
    let partings = shared.filter_map(|(a, b)| parting(a, b));
    partings.min_by_key(|(at, _)| *at).map(|(_, what)| what)
}

/// The collectives of one group by their numbers.
type Calls<'a> = BTreeMap<u64, &'a Record>;

fn by_group(records: &[Record]) -> BTreeMap<u64, Calls<'_>> {
    let mut groups: BTreeMap<u64, Calls<'_>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.call.is_collective()) {
        let calls = groups.entry(record.group).or_default();
        calls.insert(record.call.sequence, record);
    }
    groups
}

/// The first number, from which on both have records, where they differ; and when the earlier of the two calls was made.
fn parting(a: &Calls<'_>, b: &Calls<'_>) -> Option<(Duration, String)> {
    let ((first_a, some_a), (first_b, some_b)) = (a.first_key_value()?, b.first_key_value()?);
    let last = *a.last_key_value()?.0.max(b.last_key_value()?.0);
    let one_sided = |record: &Record, other: &Record| {
        let what = format!(
            "rank {} called {}, rank {} has not",
            record.rank, record.call, other.rank
        );
        Some((record.started, what))
    };
    (*first_a.max(first_b)..=last).find_map(|number| match (a.get(&number), b.get(&number)) {
        (Some(a), Some(b)) if !a.call.agrees(&b.call) => {
            let what = format!(
                "rank {} called {}, rank {} called {}",
                a.rank, a.call, b.rank, b.call
            );
            Some((a.started.min(b.started), what))
        }
        (Some(a), None) => one_sided(a, some_b),
        (None, Some(b)) => one_sided(b, some_a),
        _ => None,
    })
}
