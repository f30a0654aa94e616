//! Hints on what is read soon.

/// Elements of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 16;

/// Asks for a slice that is read soon.
#[inline(always)]
pub(crate) fn prefetch(x: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in x.chunks(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[expect(unsafe_code, reason = "a hint to the CPU takes a pointer")]
        // SAFETY: it changes no value, and SSE is part of x86-64.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}
