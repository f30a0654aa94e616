// Stacks to switch between: one a lane, and the scheduler's own.
#pragma once
#include <cstddef>

#include "sanitizers.h"

#if !defined(__x86_64__)
#error "the harness switches stacks on x86-64 only"
#endif

// Saves the registers that a call preserves on the current stack, and its address in `*save`; then continues on `load`.
asm(R"(
.text
.p2align 4
.globl frontier_switch_stack
.type frontier_switch_stack, @function
frontier_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size frontier_switch_stack, .-frontier_switch_stack
)");
extern "C" void frontier_switch_stack(void** save, void* load);

namespace frontier {

struct Fiber {
    /// Registers that frontier_switch_stack saves.
    static constexpr int SAVED = 6;

    void* top = nullptr;
    const void* bottom = nullptr;
    size_t bytes = 0;

    /// The next switch to this fiber calls `entry`, which never returns.
    void prepare(char* stack, size_t size, void (*entry)()) {
        bottom = stack;
        bytes = size;
        // At its entry a function finds the stack 8 bytes off a multiple of 16, as if it had been called.
        void** at = reinterpret_cast<void**>(stack + size) - 3;
        *--at = reinterpret_cast<void*>(entry);
        for (int i = 0; i < SAVED; ++i) *--at = nullptr;
        top = at;
    }

    /// Continues on `next`, until something switches back. `ends`: nothing will.
    void switch_to(Fiber& next, bool ends = false) {
#ifdef FRONTIER_ASAN
        void* fake_stack = nullptr;
        __sanitizer_start_switch_fiber(ends ? nullptr : &fake_stack, next.bottom, next.bytes);
        frontier_switch_stack(&top, next.top);
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
        (void)ends;
        frontier_switch_stack(&top, next.top);
#endif
    }

    /// The first thing that an entry does: completes the switch from `previous`, whose stack becomes known.
    static void entered_from(Fiber& previous) {
#ifdef FRONTIER_ASAN
        __sanitizer_finish_switch_fiber(nullptr, &previous.bottom, &previous.bytes);
#else
        (void)previous;
#endif
    }
};
} // namespace frontier
