//! An allocator for programs that train: large blocks are used again from step to step, and lie in huge pages where the system
//! has them.
//!
//! A step of training allocates and frees hundreds of megabytes of tensors. The system's allocator hands such blocks back to the
//! system, which maps and clears them page by page when they are wanted again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::{Allocator, Dlmalloc};
use memmap2::MmapMut;

/// Bytes from which a block is large.
const LARGE: usize = 1 << 16;

/// Alignment of a large block: a line of the cache, and the widest vector.
const ALIGN: usize = 64;

/// Bytes that are asked of the system at once, a multiple of a huge page.
const SEGMENT: usize = 32 << 20;

/// The allocator, for a program's `#[global_allocator]`. Small blocks are the system's. What large blocks have once taken is kept
/// for others, until the program ends.
pub struct HostMemory(Mutex<Dlmalloc<Pages>>);

impl HostMemory {
    /// An allocator that has nothing yet.
    #[expect(clippy::new_without_default, reason = "it is for a static")]
    pub const fn new() -> Self {
        let mut large = Dlmalloc::new_with_allocator(Pages);
        // Nothing is given back, so there is nothing to look for.
        large.set_max_release_check_rate(0);
        Self(Mutex::new(large))
    }

    fn large(&self) -> MutexGuard<'_, Dlmalloc<Pages>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where large blocks lie.
struct Pages;

#[expect(unsafe_code, reason = "an allocator hands out memory")]
mod allocator {
    use super::*;

    // SAFETY: every block is of the system's allocator or of dlmalloc's, as its size says, and goes back to the same.
    unsafe impl GlobalAlloc for HostMemory {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if layout.size() < LARGE {
                // SAFETY: the caller's.
                return unsafe { System.alloc(layout) };
            }
            // SAFETY: the size is not zero, and alignments are powers of two.
            unsafe {
                self.large()
                    .malloc(layout.size(), ALIGN.max(layout.align()))
            }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: the block is from `alloc` above with the same layout.
            unsafe {
                if layout.size() < LARGE {
                    System.dealloc(pointer, layout);
                } else {
                    let align = ALIGN.max(layout.align());
                    self.large().free(pointer, layout.size(), align);
                }
            }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's; a block that there is has the layout's size.
            unsafe {
                if layout.size() < LARGE {
                    return System.alloc_zeroed(layout);
                }
                // Not by dlmalloc, which would keep others waiting.
                let block = self.alloc(layout);
                if !block.is_null() {
                    block.write_bytes(0, layout.size());
                }
                block
            }
        }
    }

    // SAFETY: what is handed out is mapped, belongs to nobody else, and stays so.
    unsafe impl Allocator for Pages {
        fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
            let nothing = (std::ptr::null_mut(), 0, 0);
            let Some(size) = size.checked_next_multiple_of(SEGMENT) else {
                return nothing;
            };
            let Ok(map) = MmapMut::map_anon(size) else {
                return nothing;
            };
            // Where the system has none, pages are small.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            let map = std::mem::ManuallyDrop::new(map);
            (map.as_ptr().cast_mut(), size, 0)
        }

        fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
            std::ptr::null_mut()
        }

        fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
            false
        }

        fn free(&self, _: *mut u8, _: usize) -> bool {
            false
        }

        fn can_release_part(&self, _: u32) -> bool {
            false
        }

        fn allocates_zeros(&self) -> bool {
            true
        }

        fn page_size(&self) -> usize {
            4096
        }
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "an allocator hands out memory")]
mod tests {
    use super::*;

    /// A block, filled with a byte of its own.
    struct Block {
        start: *mut u8,
        layout: Layout,
        byte: u8,
    }

    impl Block {
        fn new(memory: &HostMemory, size: usize, byte: u8) -> Self {
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: the size is not zero, and the block has it.
            unsafe {
                let start = memory.alloc_zeroed(layout);
                assert!(!start.is_null());
                assert!(Self::bytes(start, size).iter().all(|&x| x == 0));
                start.write_bytes(byte, size);
                Self {
                    start,
                    layout,
                    byte,
                }
            }
        }

        unsafe fn bytes<'a>(start: *const u8, size: usize) -> &'a [u8] {
            // SAFETY: the caller's.
            unsafe { std::slice::from_raw_parts(start, size) }
        }

        fn is_whole(&self) -> bool {
            // SAFETY: the block is alive.
            let bytes = unsafe { Self::bytes(self.start, self.layout.size()) };
            bytes.iter().all(|&x| x == self.byte)
        }

        /// Another size, which the first bytes survive.
        fn resize(self, memory: &HostMemory, size: usize) -> Self {
            let kept = size.min(self.layout.size());
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: the block is alive and has the layout; the new one has the size.
            unsafe {
                let start = memory.realloc(self.start, self.layout, size);
                assert!(!start.is_null());
                assert!(Self::bytes(start, kept).iter().all(|&x| x == self.byte));
                start.write_bytes(self.byte, size);
                Self {
                    start,
                    layout,
                    ..self
                }
            }
        }

        fn free(self, memory: &HostMemory) {
            assert!(self.is_whole(), "another block was written over this one");
            // SAFETY: the block is alive and has the layout.
            unsafe { memory.dealloc(self.start, self.layout) }
        }
    }

    #[test]
    fn blocks_of_all_sizes_keep_what_is_in_them() {
        let memory = HostMemory::new();
        let work = |thread: usize| {
            let mut random = thread as u64 + 1;
            let mut blocks: Vec<Block> = Vec::new();
            for i in 0..600 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let (a, b) = ((random >> 40) as usize, (random >> 33) as usize);
                let size = 1 + a % (1 << (b % 22));
                match b % 5 {
                    0 | 1 if !blocks.is_empty() => {
                        blocks.swap_remove(a % blocks.len()).free(&memory)
                    }
                    2 if !blocks.is_empty() => {
                        let block = blocks.swap_remove(a % blocks.len());
                        blocks.push(block.resize(&memory, size));
                    }
                    _ => blocks.push(Block::new(&memory, size, (i * 5 + thread) as u8)),
                }
            }
            blocks.into_iter().for_each(|block| block.free(&memory));
        };
        std::thread::scope(|scope| {
            for thread in 0..3 {
                scope.spawn(move || work(thread));
            }
        });
    }

    #[test]
    fn large_blocks_are_aligned_and_used_again() {
        let memory = HostMemory::new();
        let sizes = [LARGE, LARGE + 4, 3 << 20, 40 << 20];
        let step = || {
            let blocks = sizes.map(|size| Block::new(&memory, size, 7));
            let starts = blocks.each_ref().map(|block| block.start as usize);
            blocks.into_iter().for_each(|block| block.free(&memory));
            starts
        };
        let starts = step();
        assert!(starts.iter().all(|start| start % ALIGN == 0), "{starts:?}");
        // The first step took what is there in the order in which it came.
        let settled = step();
        for _ in 0..10 {
            assert_eq!(step(), settled);
        }
    }
}
