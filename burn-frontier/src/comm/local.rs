//! Ranks as threads of one process: for tests, laptops, and a node whose devices one process drives.
//!
//! [`run`] starts the threads; [`single`] is a world of one on the current thread. Buffers are moved, not serialised;
//! a rank that waits sleeps. Every thread of a rank that communicates needs a communicator of its own: one that
//! overlaps communication with computation makes a sub-group for it.

mod elements;
mod group;
mod member;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use self::member::Member;
use self::world::{World, lock};
use super::Communicator;
use crate::error::{Error, Result, panic_message};

/// Stack of a rank's thread, in bytes: the backward pass of a deep model recurses.
const STACK: usize = 16 << 20;

/// How patient the ranks are, and how much they remember.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// How long an operation may wait for other ranks before it is an error; [`Duration::MAX`] for ever.
    pub timeout: Duration,
    /// How many operations each rank's flight recorder keeps.
    pub records: usize,
    /// Gives what the flight recorders hold while the ranks run; keep a clone.
    pub recorder: FlightRecorder,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(300),
            records: 64,
            recorder: FlightRecorder::default(),
        }
    }
}

/// The flight recorders of a local world, for who stands outside of it: a signal's handler, a watchdog.
#[derive(Debug, Clone, Default)]
pub struct FlightRecorder(Arc<Mutex<Weak<World>>>);

impl FlightRecorder {
    /// The last operations of every rank of the world that runs with this recorder, a line an operation, and where the
    /// ranks part; the ranks go on meanwhile. Nothing if no world runs. A rank alone in its group records nothing.
    pub fn dump(&self) -> Option<String> {
        let world = lock(&self.0).upgrade();
        world.map(|world| world.dump())
    }
}

/// Runs `body` as ranks `0..world`, each on a thread of its own with its communicator of the whole world. Returns what
/// the ranks return, in rank order. `body` must not leave threads behind that communicate.
///
/// Each rank computes on its share of the caller's threads (those of rayon's pool, rounded up): a pool of its own, which its thread
/// belongs to. A rank that waits leaves its core to another, and none waits for a pool that others keep busy.
///
/// # Errors
/// The first failure in time, whichever rank met it: an error of a body or of a communicator, a panic, a rank that
/// returned while others waited for it. All other ranks get that error from their communicators, so that they end too.
pub fn run<T: Send>(
    world: usize,
    options: &LocalOptions,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    if world == 0 {
        return Err(Error::config(
            "a world of 0 ranks cannot run",
            "use at least 1 rank",
        ));
    }
    let shared = Arc::new(World::new(world, options));
    *lock(&options.recorder.0) = Arc::downgrade(&shared);
    let everyone = shared.everyone();
    let share = rayon::current_num_threads().div_ceil(world);
    let results: Vec<Option<T>> = std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(world);
        for rank in 0..world {
            let (shared, body) = (&shared, &body);
            let communicator = Member::new(shared, &everyone, rank);
            let thread = std::thread::Builder::new()
                .name(format!("rank {rank}"))
                .stack_size(STACK);
            match thread.spawn_scoped(scope, move || rank_main(shared, communicator, share, body)) {
                Ok(thread) => threads.push(thread),
                Err(reason) => {
                    let what = format!("cannot start a thread for rank {rank}: {reason}");
                    shared.fail(Error::communication(rank, what, "use fewer ranks"));
                }
            }
        }
        threads
            .into_iter()
            .map(|thread| thread.join().ok().flatten())
            .collect()
    });
    match shared.failure() {
        Some(error) => {
            if matches!(error, Error::Communication { .. }) {
                // The error itself is the caller's to show.
                tracing::error!("ranks failed; their last operations:\n{}", shared.dump());
            }
            Err(error.clone())
        }
        None => results
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| Error::Internal("a rank ended without a result".into())),
    }
}

/// A world of one rank on the current thread: every operation returns at once what it was given.
pub fn single() -> Arc<dyn Communicator> {
    let world = Arc::new(World::new(1, &LocalOptions::default()));
    let everyone = world.everyone();
    Arc::new(Member::new(&world, &everyone, 0))
}

/// The life of one rank, on a pool of so many threads.
fn rank_main<T>(
    world: &World,
    communicator: Member,
    threads: usize,
    body: &impl Fn(Arc<dyn Communicator>) -> Result<T>,
) -> Option<T> {
    let rank = communicator.world_rank();
    // Until the rank ends; its own thread is one of them.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("rank {rank}, thread {i}"))
        .use_current_thread()
        .build();
    if let Err(reason) = &pool {
        let what = format!("cannot start {threads} threads for rank {rank}: {reason}");
        world.fail(Error::communication(rank, what, "use fewer ranks"));
        return None;
    }
    // Nothing that the body may leave half done is looked at again: a panic fails the whole world.
    match catch_unwind(AssertUnwindSafe(|| body(Arc::new(communicator)))) {
        Ok(Ok(result)) => {
            world.finish(rank);
            Some(result)
        }
        Ok(Err(error)) => {
            world.fail(error);
            None
        }
        Err(panic) => {
            let what = format!("panicked: {}", panic_message(panic.as_ref()));
            let remedy = "set RUST_BACKTRACE=1 to see where";
            world.fail(Error::communication(rank, what, remedy));
            None
        }
    }
}
