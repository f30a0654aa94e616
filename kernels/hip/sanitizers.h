// What the sanitizers must be told about fibers and memory. Nothing, unless FRONTIER_TSAN or FRONTIER_ASAN is defined.
#pragma once
#include <cstddef>

#ifdef FRONTIER_TSAN
#include <sys/mman.h>

extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif
#ifdef FRONTIER_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_bytes);
void __asan_poison_memory_region(const volatile void* address, size_t bytes);
}
#endif

#if defined(FRONTIER_TSAN) || defined(FRONTIER_ASAN)
extern "C" void __sanitizer_print_stack_trace();
#endif

namespace frontier {

/// Prints the calls that led here, if a sanitizer is there to do it.
inline void print_stack() {
#if defined(FRONTIER_TSAN) || defined(FRONTIER_ASAN)
    __sanitizer_print_stack_trace();
#endif
}

/// A thread in the eyes of the thread sanitizer: one for each wave, whose lanes run in step, and one for the scheduler.
struct Thread {
#ifdef FRONTIER_TSAN
    void* fiber = nullptr;

    static Thread current() { return {__tsan_get_current_fiber()}; }
    /// What the scheduler did so far happens before what the new thread does.
    void create() { fiber = __tsan_create_fiber(0); }
    void destroy() { __tsan_destroy_fiber(fiber); }
    /// A switch by itself orders nothing: only barriers do.
    void enter() const {
        const unsigned no_order = 1;
        __tsan_switch_to_fiber(fiber, no_order);
    }
    static void release(void* at) { __tsan_release(at); }
    static void acquire(void* at) { __tsan_acquire(at); }
#else
    static Thread current() { return {}; }
    void create() {}
    void destroy() {}
    void enter() const {}
    static void release(void*) {}
    static void acquire(void*) {}
#endif
};

/// These bytes, whole pages, are other memory from now on: what blocks did to it before is no race with what they will do.
inline void renew(char* at, size_t bytes) {
#ifdef FRONTIER_TSAN
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
#else
    (void)at, (void)bytes;
#endif
}

/// From here on, the address sanitizer reports accesses to these bytes.
inline void forbid(char* at, size_t bytes) {
#ifdef FRONTIER_ASAN
    __asan_poison_memory_region(at, bytes);
#else
    (void)at, (void)bytes;
#endif
}
} // namespace frontier
