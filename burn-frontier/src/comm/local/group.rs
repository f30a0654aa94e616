//! Where the members of one group meet: rendezvous of collectives, queues of messages, and what is said when it fails.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::world::{World, lock};
use crate::comm::Buffer;
use crate::comm::record::Call;
use crate::error::{Error, Result};

const SAME_ORDER: &str = "let every member of a group call the same operations in the same order, with equal element \
                          types, counts, reductions and roots";
const LOOK_AT_MISSING: &str =
    "look at what the missing ranks do after that, or allow more time (LocalOptions::timeout)";

/// Buffers of all members, in group order.
pub(super) type Parts = Arc<Vec<Arc<Buffer>>>;

/// Shared by the members of a group.
#[derive(Debug)]
pub(super) struct Group {
    /// Number in the world.
    pub(super) id: u64,
    pub(super) label: Arc<str>,
    /// World ranks, in group order.
    pub(super) members: Vec<usize>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Who holds a communicator of this group.
    joined: Vec<bool>,
    /// Who waits in the current rendezvous.
    arrived: Vec<Option<Arrival>>,
    /// Complete rendezvous.
    rounds: u64,
    /// The latest complete rendezvous, until all members have seen it, and how many have not.
    complete: Option<(Parts, usize)>,
    /// Messages on their way, by (sender, receiver).
    mail: HashMap<(usize, usize), VecDeque<Buffer>>,
}

#[derive(Debug)]
struct Arrival {
    call: Call,
    data: Arc<Buffer>,
}

impl State {
    /// The buffers of round `round`, once complete. Forgets them when the last member has them.
    fn depart(&mut self, round: u64) -> Option<Parts> {
        if self.rounds == round {
            return None;
        }
        let (parts, left) = self.complete.take()?;
        if left > 1 {
            self.complete = Some((Arc::clone(&parts), left - 1));
        }
        Some(parts)
    }

    fn missing(&self) -> Vec<usize> {
        let absent = |member: &usize| self.arrived[*member].is_none();
        (0..self.arrived.len()).filter(absent).collect()
    }
}

/// Why waiting ended without success.
enum Stop {
    /// The world has failed.
    Failed(Error),
    /// Somebody waited for has returned.
    Finished(usize),
    /// Too long; who was waited for.
    TimedOut(Vec<usize>),
}

impl Group {
    pub(super) fn new(id: u64, label: &str, members: Vec<usize>) -> Self {
        let state = State {
            joined: vec![false; members.len()],
            arrived: members.iter().map(|_| None).collect(),
            rounds: 0,
            complete: None,
            mail: HashMap::new(),
        };
        Self {
            id,
            label: label.into(),
            members,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Notes that a member holds a communicator. Returns whether now all do.
    pub(super) fn join(&self, me: usize) -> bool {
        let mut state = lock(&self.state);
        state.joined[me] = true;
        state.joined.iter().all(|&joined| joined)
    }

    /// Lets all who wait look again. Taking the lock first means that nobody is between looking and sleeping.
    pub(super) fn wake(&self) {
        let _state = lock(&self.state);
        self.changed.notify_all();
    }

    /// Waits until every member has come here with an agreeing call. Returns what each brought.
    pub(super) fn exchange(
        &self,
        world: &World,
        me: usize,
        call: &Call,
        data: Arc<Buffer>,
    ) -> Result<Parts> {
        let mut state = lock(&self.state);
        let others = state.arrived.iter().zip(&self.members);
        let disagrees = |(arrival, rank): (&Option<Arrival>, &usize)| {
            let other = arrival
                .as_ref()
                .filter(|arrival| !arrival.call.agrees(call))?;
            Some(format!("rank {rank} called {}", other.call))
        };
        if let Some(other) = others.filter_map(disagrees).next() {
            let what = format!("rank {} called {call}, but {other}", self.members[me]);
            return Err(self.error(me, what, SAME_ORDER));
        }
        state.arrived[me] = Some(Arrival {
            call: call.clone(),
            data,
        });
        let round = state.rounds;
        if state.arrived.iter().all(Option::is_some) {
            let arrivals = state.arrived.iter_mut().filter_map(Option::take);
            let parts = arrivals.map(|arrival| arrival.data).collect();
            state.complete = Some((Arc::new(parts), self.members.len()));
            state.rounds += 1;
            self.changed.notify_all();
        }
        self.wait(world, state, |state| state.depart(round), State::missing)
            .map_err(|stop| self.explain(world, me, call, stop))
    }

    /// Puts a message on its way.
    pub(super) fn post(&self, me: usize, to: usize, data: Buffer) {
        lock(&self.state)
            .mail
            .entry((me, to))
            .or_default()
            .push_back(data);
        self.changed.notify_all();
    }

    /// Waits for the next message from `from`.
    pub(super) fn take(
        &self,
        world: &World,
        me: usize,
        call: &Call,
        from: usize,
    ) -> Result<Buffer> {
        let next = |state: &mut State| state.mail.get_mut(&(from, me))?.pop_front();
        self.wait(world, lock(&self.state), next, |_| vec![from])
            .map_err(|stop| self.explain(world, me, call, stop))
    }

    /// Sleeps until `ready` gives something, or there is no point in waiting any longer.
    fn wait<R>(
        &self,
        world: &World,
        mut state: MutexGuard<'_, State>,
        mut ready: impl FnMut(&mut State) -> Option<R>,
        missing: impl Fn(&State) -> Vec<usize>,
    ) -> Result<R, Stop> {
        let begin = Instant::now();
        loop {
            // Looked at before the members: who has finished has done so before it was marked as finished.
            let waited = begin.elapsed();
            if let Some(result) = ready(&mut state) {
                return Ok(result);
            }
            if let Some(failure) = world.failure() {
                return Err(Stop::Failed(failure.clone()));
            }
            let missing = missing(&state);
            let has_finished = |member: &usize| world.finished(self.members[*member]);
            if let Some(finished) = missing.iter().copied().find(has_finished) {
                return Err(Stop::Finished(finished));
            }
            if waited >= world.timeout {
                return Err(Stop::TimedOut(missing));
            }
            let woken = self.changed.wait_timeout(state, world.timeout - waited);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn explain(&self, world: &World, me: usize, call: &Call, stop: Stop) -> Error {
        let rank = self.members[me];
        match stop {
            Stop::Failed(failure) => failure,
            Stop::Finished(member) => {
                let other = self.members[member];
                let last = world.last_operation(other);
                let what =
                    format!("rank {other} has finished while rank {rank} waits in {call} ({last})");
                self.error(me, what, SAME_ORDER)
            }
            Stop::TimedOut(missing) => {
                let who = self.attendance(world, me, &missing);
                let what = format!("{call} took longer than {:?}: {who}", world.timeout);
                self.error(me, what, LOOK_AT_MISSING)
            }
        }
    }

    /// Who is here and who is not, and what the missing did last.
    fn attendance(&self, world: &World, me: usize, missing: &[usize]) -> String {
        let state = lock(&self.state);
        // A receiver is not among the arrivals of the rendezvous, but here all the same.
        let here = |i: &usize| *i == me || state.arrived[*i].is_some();
        let here: Vec<usize> = (0..self.members.len())
            .filter(here)
            .map(|i| self.members[i])
            .collect();
        let absent = |&member: &usize| {
            let rank = self.members[member];
            let joined = if state.joined[member] {
                String::new()
            } else {
                format!("it has not made this sub-group of {:?}; ", self.members)
            };
            format!(
                "rank {rank} is missing ({joined}{})",
                world.last_operation(rank)
            )
        };
        let absent: Vec<String> = missing.iter().map(absent).collect();
        format!("ranks {here:?} wait, {}", absent.join(", "))
    }

    fn error(&self, me: usize, what: String, remedy: &str) -> Error {
        Error::communication(self.members[me], what, remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::local::LocalOptions;
    use crate::comm::local::member::Member;
    use crate::comm::{Communicator, Reduction};

    #[test]
    fn nothing_is_kept_of_operations_that_are_complete() {
        let world = Arc::new(World::new(2, &LocalOptions::default()));
        let group = world.everyone();
        std::thread::scope(|scope| {
            for rank in 0..2 {
                let member = Member::new(&world, &group, rank);
                scope.spawn(move || {
                    for count in [10, 10_000] {
                        let data = Buffer::F32(vec![1.0; count]);
                        member.all_reduce(data.clone(), Reduction::Sum).unwrap();
                        member.send(data, 1 - rank).unwrap();
                        member.recv(1 - rank).unwrap();
                    }
                });
            }
        });
        let state = lock(&group.state);
        assert_eq!(state.rounds, 3);
        assert!(state.complete.is_none());
        assert!(state.arrived.iter().all(Option::is_none));
        assert!(state.mail.values().all(VecDeque::is_empty));
    }
}
