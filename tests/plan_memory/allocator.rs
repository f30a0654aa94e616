//! An allocator that knows how much memory each rank's thread has asked for and not given back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Most ranks that are told apart.
const RANKS: usize = 16;
/// Owner of what other threads allocate.
const NOBODY: usize = RANKS;

/// Bytes alive, and the most since the last [`reset`], by owner.
static LIVE: [AtomicI64; RANKS + 1] = [const { AtomicI64::new(0) }; RANKS + 1];
static PEAK: [AtomicI64; RANKS + 1] = [const { AtomicI64::new(0) }; RANKS + 1];

thread_local! {
    static OWNER: Cell<usize> = const { Cell::new(NOBODY) };
}

/// Counts what this thread allocates from now on for `rank`.
pub fn own(rank: usize) {
    OWNER.set(rank);
}

/// Forgets the peak of `rank`; gives what is alive.
pub fn reset(rank: usize) -> i64 {
    let live = LIVE[rank].load(Relaxed);
    PEAK[rank].store(live, Relaxed);
    live
}

/// The peak of `rank` since the last [`reset`].
pub fn peak(rank: usize) -> i64 {
    PEAK[rank].load(Relaxed)
}

/// The system's allocator, with the owner in front of every block.
pub struct Counting;

/// Bytes in front of a block; keeps its alignment.
fn front(layout: &Layout) -> usize {
    layout.align().max(size_of::<usize>())
}

fn with_front(layout: &Layout) -> Option<Layout> {
    let front = front(layout);
    Layout::from_size_align(layout.size().checked_add(front)?, front).ok()
}

// SAFETY: every block is one of the system's, larger by `front`, which is a multiple of the alignment; so what is handed
// out is as large and as aligned as was asked for, and `dealloc` finds the start of the system's block again.
#[expect(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(whole) = with_front(&layout) else {
            return std::ptr::null_mut();
        };
        // SAFETY: `whole` is not empty.
        let block = unsafe { System.alloc(whole) };
        if block.is_null() {
            return block;
        }
        // A thread that ends allocates too, when its variables are gone.
        let owner = OWNER.try_with(Cell::get).unwrap_or(NOBODY);
        let live = LIVE[owner].fetch_add(layout.size() as i64, Relaxed) + layout.size() as i64;
        PEAK[owner].fetch_max(live, Relaxed);
        // SAFETY: the block begins with room for the owner, aligned for it.
        unsafe {
            block.cast::<usize>().write(owner);
            block.add(front(&layout))
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some(whole) = with_front(&layout) else {
            return;
        };
        // SAFETY: `alloc` made this block from the same layout.
        unsafe {
            let block = pointer.sub(front(&layout));
            LIVE[block.cast::<usize>().read()].fetch_sub(layout.size() as i64, Relaxed);
            System.dealloc(block, whole);
        }
    }
}
