// A block of threads on the CPU: who runs when.
//
// Each thread is a fiber: a stack of its own, left and entered again. It runs until it waits, at a
// barrier or, with its warp, for an instruction that a warp executes together; a warp runs as far as
// it can before the next one starts, for in those turns a forgotten barrier does most harm. Blocks
// run one after another. Shared memory begins as NaN.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <numeric>
#include <random>
#include <source_location>
#include <vector>
#include "fiber.hpp"

using Here = std::source_location;

struct dim3 { unsigned x = 1, y = 1, z = 1; };

namespace block {

constexpr int WARP = 32;
constexpr unsigned MEMORY = 227 * 1024, STATIC = 48 * 1024;               // bytes, as on an H100

enum State { RUNS, AT_BARRIER, WITH_WARP, LEFT, FAILED };

struct Copy { void* to; const void* from; bool valid; int group; };       // one cp.async under way

struct Thread {
    Fiber fiber;
    State state;
    unsigned line;                                        // of the source, where it waits
    void* operands;                                       // of the instruction it waits for,
    void (*instruction)(void** lanes, int count);         // which works on those of all lanes
    std::deque<Copy> copies;
    int groups;                                           // of copies, closed so far
    bool hidden;                                          // copies that only this proxy sees
};

inline std::vector<Thread> threads;
inline std::function<void()> body;                        // the kernel with its arguments
inline dim3 thread_index, block_index, block_size, grid_size;
inline int current;                                       // thread
inline unsigned asked;                                    // bytes of shared memory
alignas(1024) inline char memory[MEMORY];                 // shared, of the size asked for
alignas(1024) inline char variables[STATIC];              // shared, of a fixed size
inline unsigned variables_used;
inline char fault[400];

inline unsigned count(dim3 size) { return size.x * size.y * size.z; }

inline dim3 index(unsigned i, dim3 size) {
    return {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
}

// Give the turn back, to go on when the scheduler says so.
inline void wait(State state, unsigned line) {
    threads[current].state = state;
    threads[current].line = line;
    threads[current].fiber.leave();
}

inline void report(const char* what, unsigned line) {
    snprintf(fault, sizeof fault, "line %u: thread (%u, %u, %u) of block (%u, %u, %u): %s", line,
             thread_index.x, thread_index.y, thread_index.z,
             block_index.x, block_index.y, block_index.z, what);
}

// Report what this thread did, and never go on.
inline void fail(const char* what, unsigned line) {
    report(what, line);
    wait(FAILED, line);
}

// Wait for the other lanes; then the scheduler does the work of the instruction once, for all.
template <class Operands>
void together(Operands& mine, void (*instruction)(Operands** lanes, int count), Here here) {
    threads[current].operands = &mine;
    threads[current].instruction = reinterpret_cast<void (*)(void**, int)>(instruction);
    wait(WITH_WARP, here.line());
}

// Run each lane to where it waits, and, while all wait for the same instruction, do it and go on.
inline void run_warp(int first, int size, const std::vector<int>& turns) {
    for (;;) {
        for (int turn : turns) {
            int i = first + turn;
            if (turn >= size || threads[i].state != RUNS)
                continue;
            current = i;
            thread_index = index(i, block_size);
            threads[i].fiber.enter();
            if (threads[i].state == FAILED)
                return;
        }
        Thread* lane = &threads[first];
        void* operands[WARP];
        for (int l = 0; l < size; l++) {
            if (lane[l].state != WITH_WARP)
                return;                                   // at a barrier, or it left: see below
            current = first + l, thread_index = index(current, block_size);
            if (lane[l].line != lane->line || lane[l].instruction != lane->instruction)
                return report("this lane and lane 0 of its warp are at different instructions that a "
                            "warp executes together", lane[l].line);
            operands[l] = lane[l].operands;
        }
        lane->instruction(operands, size);
        for (int l = 0; l < size; l++)
            lane[l].state = RUNS;
    }
}

// After every warp has run as far as it can: either all left, or all are at one barrier.
inline bool at_end() {
    auto is = [](State state) { return [=](const Thread& t) { return t.state == state; }; };
    if (std::all_of(threads.begin(), threads.end(), is(LEFT)))
        return true;
    Thread& waiting = *std::find_if(threads.begin(), threads.end(),
                                    [](const Thread& t) { return t.state != LEFT; });
    for (Thread& t : threads) {
        current = &t - threads.data(), thread_index = index(current, block_size);
        char what[200];
        if (t.state == LEFT)
            snprintf(what, sizeof what, "has left the kernel while others wait at line %u",
                     waiting.line);
        else if (t.state == WITH_WARP)
            snprintf(what, sizeof what, "waits for the rest of its warp, which is elsewhere");
        else if (t.line != waiting.line)
            snprintf(what, sizeof what, "is at this barrier, others are at the one in line %u",
                     waiting.line);
        else
            continue;
        report(what, t.line);
        return true;
    }
    for (Thread& t : threads)
        t.state = RUNS;
    return false;
}

inline void run_block(const std::vector<int>& warps, const std::vector<int>& lanes) {
    memset(memory, 0xff, MEMORY);                         // NaN, in every type
    memset(variables, 0xff, STATIC);
    int size = threads.size();
    for (Thread& t : threads) {
        t.state = RUNS, t.groups = 0, t.line = 0, t.hidden = false;
        t.copies.clear();
        t.fiber.begin([] { body(); threads[current].state = LEFT; threads[current].fiber.leave(); });
    }
    do {
        for (int warp : warps) {
            run_warp(warp * WARP, std::min(WARP, size - warp * WARP), lanes);
            if (*fault)
                return;
        }
    } while (!at_end());
    if (!*fault && std::any_of(memory + asked, memory + MEMORY, [](char c) { return c != '\xff'; }))
        snprintf(fault, sizeof fault, "block (%u, %u, %u) wrote past the %u bytes of shared memory "
                 "it was launched with", block_index.x, block_index.y, block_index.z, asked);
}

// 0, 1, …, n − 1 from the first, from the last, or shuffled.
inline std::vector<int> turns(int n, int order) {
    std::vector<int> numbers(n);
    std::iota(numbers.begin(), numbers.end(), 0);
    if (order == 1)
        std::reverse(numbers.begin(), numbers.end());
    else if (order)
        std::shuffle(numbers.begin(), numbers.end(), std::mt19937(order));
    return numbers;
}

// Run a kernel; what went wrong, or "" if nothing did.
inline const char* launch(const unsigned* grid, const unsigned* size, unsigned shared, int order,
                          std::function<void()> kernel) {
    grid_size = {grid[0], grid[1], grid[2]}, block_size = {size[0], size[1], size[2]};
    body = kernel, asked = shared, *fault = 0;
    if (count(block_size) > 1024 || shared > MEMORY) {
        snprintf(fault, sizeof fault, "asked for %u threads of a block and %u bytes of shared memory: "
                 "a GPU has at most 1024 and %u", count(block_size), shared, MEMORY);
        return fault;
    }
    threads.resize(count(block_size));
    auto warps = turns((threads.size() + WARP - 1) / WARP, order), lanes = turns(WARP, order);
    for (int b : turns(count(grid_size), order)) {
        block_index = index(b, grid_size);
        run_block(warps, lanes);
        if (*fault)
            break;
    }
    return fault;
}

inline bool in_shared(const void* p, unsigned bytes) {
    auto inside = [=](const char* start, unsigned size) {
        return p >= start && static_cast<const char*>(p) + bytes <= start + size;
    };
    return inside(memory, asked) || inside(variables, variables_used);
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace block
