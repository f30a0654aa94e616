//! Threads: one level of parallelism, by rayon's global pool.

use std::cell::RefCell;

use rayon::prelude::*;

/// How many tasks run at once.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `work` with each number below `count`, on several threads if `parallel`.
pub fn for_tasks(count: usize, parallel: bool, work: impl Fn(usize) + Sync + Send) {
    if parallel && count > 1 && threads() > 1 {
        (0..count).into_par_iter().with_max_len(1).for_each(work);
    } else {
        (0..count).for_each(work);
    }
}

/// Elements that are worth another thread to clear.
const CLEARED: usize = 1 << 17;

/// As many zeros, cleared on all threads where that pays: a large vector is as much memory as what is then computed in it.
#[expect(unsafe_code, reason = "a vector is cleared in pieces")]
pub fn zeros<E: Copy + Default + Send>(len: usize) -> Vec<E> {
    if len < 2 * CLEARED || threads() == 1 {
        return vec![E::default(); len];
    }
    let mut all = Vec::with_capacity(len);
    let pieces = all.spare_capacity_mut()[..len].par_chunks_mut(CLEARED);
    pieces.for_each(|piece| piece.fill(std::mem::MaybeUninit::new(E::default())));
    // SAFETY: so many elements were written just now.
    unsafe { all.set_len(len) };
    all
}

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Gives `work` memory of that length for the time of the call. What is in it is anything: it is this thread's, and used again.
pub fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out while it is used, so that `work` may ask again.
    let free = SCRATCH.with_borrow_mut(Vec::pop);
    let mut memory = free.unwrap_or_default();
    if memory.len() < len {
        memory = vec![0.0; len];
    }
    let result = work(&mut memory[..len]);
    SCRATCH.with_borrow_mut(|all| all.push(memory));
    result
}

/// A slice that several tasks write at once, each its own part.
#[derive(Clone, Copy)]
pub struct Shared<'a, T = f32> {
    start: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

#[expect(
    unsafe_code,
    reason = "tasks write blocks of a matrix, which no split of a slice describes"
)]
mod shared {
    use super::Shared;

    // SAFETY: it is a `&mut [T]`, which may be sent; `range` makes its caller see to it that parts in use do not overlap.
    unsafe impl<T: Send> Send for Shared<'_, T> {}
    // SAFETY: as above.
    unsafe impl<T: Send> Sync for Shared<'_, T> {}

    impl<'a, T: Copy> Shared<'a, T> {
        /// Of all of the slice.
        pub fn new(slice: &'a mut [T]) -> Self {
            Self {
                start: slice.as_mut_ptr(),
                len: slice.len(),
                slice: std::marker::PhantomData,
            }
        }

        /// The elements from `start` on.
        ///
        /// # Panics
        /// If they are not within the slice.
        ///
        /// # Safety
        /// While the result is in use, no other part that overlaps it is.
        #[inline(always)]
        pub unsafe fn range(self, start: usize, len: usize) -> &'a mut [T] {
            assert!(start <= self.len && len <= self.len - start);
            // SAFETY: within the slice by the assertion; not used elsewhere by the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_all_lengths_are_zeros() {
        for len in [0, 1, CLEARED, 2 * CLEARED, 5 * CLEARED + 7] {
            // Memory that something lay in.
            drop(vec![f32::NAN; len]);
            assert_eq!(zeros::<f32>(len), vec![0.0; len]);
        }
    }
}
