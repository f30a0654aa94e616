// Runs a kernel on the CPU: one fiber a lane. Operations of a wave or a workgroup are meetings, at which a lane waits
// until all others have come to the same place.
#include "harness.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "fiber.h"
#include "launch.h"
#include "matrix.h"
#include "order.h"
#include "sanitizers.h"

/// Calls the kernel as the current lane. Defined beside the kernel's text.
extern "C" void frontier_call(void* const* arguments);

/// The largest LDS of a workgroup, and what lies behind it, which nobody may touch.
static constexpr size_t SHARED_MAX = 65536, SHARED_MARGIN = 4096;
alignas(4096) char frontier_shared[SHARED_MAX + SHARED_MARGIN];

namespace frontier {
namespace {

constexpr int THREADS_MAX = 1024;
constexpr size_t STACK_BYTES = 256 << 10;

enum class State { Running, Waiting, Returned };
enum class Meeting { Workgroup, Wave, Ballot, Shuffle, First, Multiply };
const char* const MEETINGS[] = {"a barrier", "a wave barrier", "a ballot", "a shuffle", "a read of the first lane",
                                "a matrix instruction"};

struct Lane {
    Fiber fiber;
    Index thread;
    State state;
    // What it waits for, and where it was called.
    Meeting meeting;
    const void* site;
    // What it brings to the meeting, and takes from it in `value`.
    u64 value;
    int source;
    Form form;
    Registers registers;
};

Launch launch;
std::vector<Lane> lanes;
char* stacks;
Lane* current;
Fiber scheduler;
Thread scheduler_thread;
std::vector<Thread> waves;
Index block_index;
Order order;

int wave_size() { return int(launch.header.wave); }
int index_of(const Lane& lane) { return int(&lane - lanes.data()); }

[[noreturn]] void fail_at(Lane& lane, const char* why) {
    current = &lane;
    fail(why);
}

// ---- a lane's side: wait, and let the scheduler go on

void meet(Meeting meeting, const void* site) {
    Lane& lane = *current;
    lane.state = State::Waiting;
    lane.meeting = meeting;
    lane.site = site;
    lane.fiber.switch_to(scheduler);
}

void run_lane() {
    Fiber::entered_from(scheduler);
    frontier_call(launch.buffers.data());
    current->state = State::Returned;
    current->fiber.switch_to(scheduler, true);
    __builtin_unreachable();
}

// ---- the scheduler's side: meetings of a wave

struct Wave {
    Lane* lanes;
    int count;
};

void hold_ballot(const Wave& wave) {
    u64 votes = 0;
    for (int i = 0; i < wave.count; ++i)
        if (wave.lanes[i].state == State::Waiting && wave.lanes[i].value) votes |= 1ull << i;
    for (int i = 0; i < wave.count; ++i) wave.lanes[i].value = votes;
}

void shuffle_values(const Wave& wave) {
    u64 values[64];
    for (int i = 0; i < 64; ++i)
        values[i] = i < wave.count && wave.lanes[i].state == State::Waiting ? wave.lanes[i].value : ~0ull;
    for (int i = 0; i < wave.count; ++i) {
        const int source = wave.lanes[i].source;
        if (source < 0 || source >= wave_size()) fail_at(wave.lanes[i], "a shuffle from a lane beyond the wave");
        wave.lanes[i].value = values[source];
    }
}

void multiply_matrices(const Wave& wave) {
    const Form form = wave.lanes[0].form;
    Registers registers[64];
    for (int i = 0; i < wave.count; ++i) {
        if (wave.lanes[i].state != State::Waiting)
            fail_at(wave.lanes[i], "a matrix instruction of which this lane is no part: the hardware takes all lanes");
        registers[i] = wave.lanes[i].registers;
    }
    if (wave.count != lanes_of(form)) fail_at(wave.lanes[0], "a matrix instruction of another wave size");
    multiply(form, registers, launch.header.flush != 0);
}

void hold(Meeting meeting, const Wave& wave, const Lane& first) {
    switch (meeting) {
    case Meeting::Ballot: return hold_ballot(wave);
    case Meeting::Shuffle: return shuffle_values(wave);
    case Meeting::First:
        for (int i = 0; i < wave.count; ++i) wave.lanes[i].value = first.value;
        return;
    case Meeting::Multiply: return multiply_matrices(wave);
    case Meeting::Wave:
    case Meeting::Workgroup: return;
    }
}

/// The first lane that has not returned, after making sure that all such lanes wait at one place; null if there is none.
Lane* where_all_wait(Lane* lanes, int count) {
    Lane* first = nullptr;
    for (int i = 0; i < count; ++i) {
        Lane& lane = lanes[i];
        if (lane.state == State::Returned) continue;
        if (!first) first = &lane;
        if (lane.meeting == first->meeting && lane.site == first->site) continue;
        char why[256];
        snprintf(why, sizeof why, "lanes have parted: some wait for %s, this one for %s%s",
                 MEETINGS[int(first->meeting)], MEETINGS[int(lane.meeting)],
                 lane.meeting == first->meeting ? " elsewhere in the text" : "");
        fail_at(lane, why);
    }
    return first;
}

/// Runs the lanes of a wave until each has returned or waits at a barrier of the workgroup.
void run_wave(const Wave& wave, const Thread& thread) {
    for (;;) {
        thread.enter();
        for (int i : order.lanes) {
            if (i >= wave.count || wave.lanes[i].state != State::Running) continue;
            current = &wave.lanes[i];
            scheduler.switch_to(current->fiber);
        }
        scheduler_thread.enter();
        Lane* first = where_all_wait(wave.lanes, wave.count);
        if (!first || first->meeting == Meeting::Workgroup) return;
        hold(first->meeting, wave, *first);
        for (int i = 0; i < wave.count; ++i)
            if (wave.lanes[i].state == State::Waiting) wave.lanes[i].state = State::Running;
    }
}

// ---- workgroups

/// What each wave did before happens before what any does after, in the block whose barrier this is.
void order_waves(char* barrier) {
    for (const Thread& wave : waves) {
        wave.enter();
        Thread::release(barrier);
    }
    for (const Thread& wave : waves) {
        wave.enter();
        Thread::acquire(barrier);
    }
    scheduler_thread.enter();
}

/// Opens the barrier that all lanes wait at. False if all have returned instead.
bool open_barrier() {
    const Lane* first = where_all_wait(lanes.data(), int(lanes.size()));
    if (!first) return false;
    for (Lane& lane : lanes)
        if (lane.state == State::Returned) fail_at(lane, "a barrier that some lanes never reach: this one has returned");
    for (Lane& lane : lanes) lane.state = State::Running;
    return true;
}

void prepare_lanes() {
    const auto& threads = launch.header.threads;
    for (size_t i = 0; i < lanes.size(); ++i) {
        Lane& lane = lanes[i];
        lane.thread = {unsigned(i % threads[0]), unsigned(i / threads[0] % threads[1]),
                       unsigned(i / (threads[0] * threads[1]))};
        lane.state = State::Running;
        lane.fiber.prepare(stacks + i * STACK_BYTES, STACK_BYTES, run_lane);
    }
}

/// `barrier` is an address of the block's own: nothing orders blocks but the end of the launch.
void run_block(char* barrier) {
    renew(stacks, lanes.size() * STACK_BYTES);
    renew(frontier_shared, SHARED_MAX);
    // NaN in every floating-point type: reading what nobody wrote shows.
    memset(frontier_shared, 0xff, launch.header.shared_bytes);
    prepare_lanes();
    for (Thread& wave : waves) wave.create();
    do {
        for (int wave : order.waves) {
            const int first = wave * wave_size(), left = int(lanes.size()) - first;
            run_wave({&lanes[size_t(first)], left < wave_size() ? left : wave_size()}, waves[size_t(wave)]);
        }
        order_waves(barrier);
    } while (open_barrier());
    for (Thread& wave : waves) {
        wave.enter();
        Thread::release(&launch);
        scheduler_thread.enter();
        wave.destroy();
    }
}

void run() {
    const Header& header = launch.header;
    const uint64_t threads = header.threads[0] * header.threads[1] * header.threads[2];
    if (threads == 0 || threads > THREADS_MAX) fail("a workgroup has 1 to 1024 threads");
    if (header.shared_bytes > SHARED_MAX) fail("a workgroup has at most 64 KiB of LDS");
    forbid(frontier_shared + header.shared_bytes, sizeof frontier_shared - header.shared_bytes);
    lanes.resize(threads);
    waves.resize((threads + header.wave - 1) / header.wave);
    stacks = static_cast<char*>(mmap(nullptr, threads * STACK_BYTES, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) fail("no memory for the stacks");
    scheduler_thread = Thread::current();
    const uint64_t blocks = header.blocks[0] * header.blocks[1] * header.blocks[2];
    order = Order(header.order, blocks, waves.size(), header.wave);
    std::vector<char> barriers(blocks);
    for (uint64_t block : order.blocks) {
        block_index = {unsigned(block % header.blocks[0]), unsigned(block / header.blocks[0] % header.blocks[1]),
                       unsigned(block / (header.blocks[0] * header.blocks[1]))};
        run_block(&barriers[block]);
    }
    Thread::acquire(&launch);
}
} // namespace

// ---- what a kernel calls

Index thread() { return current->thread; }
Index block() { return block_index; }
Index threads_of_a_block() {
    const auto& threads = launch.header.threads;
    return {unsigned(threads[0]), unsigned(threads[1]), unsigned(threads[2])};
}
Index blocks() {
    const auto& blocks = launch.header.blocks;
    return {unsigned(blocks[0]), unsigned(blocks[1]), unsigned(blocks[2])};
}
int lane() { return index_of(*current) % wave_size(); }

void workgroup_barrier() { meet(Meeting::Workgroup, __builtin_return_address(0)); }
void wave_barrier() { meet(Meeting::Wave, __builtin_return_address(0)); }
u64 ballot(bool predicate) {
    current->value = predicate;
    meet(Meeting::Ballot, __builtin_return_address(0));
    return current->value;
}
u64 shuffle(u64 value, int source) {
    current->value = value;
    current->source = source;
    meet(Meeting::Shuffle, __builtin_return_address(0));
    return current->value;
}
u64 first_lane(u64 value) {
    current->value = value;
    meet(Meeting::First, __builtin_return_address(0));
    return current->value;
}
void multiply(Form form, const void* a, const void* b, const void* c, void* d) {
    current->form = form;
    current->registers = {a, b, c, d};
    meet(Meeting::Multiply, __builtin_return_address(0));
}
void device_fence() {
    static char fence;
    Thread::release(&fence);
    Thread::acquire(&fence);
}

void fail(const char* why) {
    fprintf(stderr, "harness: %s", why);
    if (current) {
        const Index at = current->thread, in = block_index;
        fprintf(stderr, " (thread %u,%u,%u of block %u,%u,%u)", at.x, at.y, at.z, in.x, in.y, in.z);
    }
    fprintf(stderr, "\n");
    print_stack();
    fflush(stderr);
    _exit(3);
}
} // namespace frontier

int main(int count, char** arguments) {
    if (count != 3) frontier::fail("usage: KERNEL LAUNCH RESULTS");
    frontier::launch.read(arguments[1]);
    frontier::run();
    frontier::launch.write(arguments[2]);
}
