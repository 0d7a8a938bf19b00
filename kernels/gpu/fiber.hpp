// A fiber: a stack of its own, and one function that leaves a stack for another.
//
// What the calling convention asks a function to preserve is pushed on the one stack and popped
// from the other; so the return leads to where the other was left.
#pragma once
#include <cstdint>
#include <memory>

#if defined(__x86_64__) && !defined(TINYDIFF_UCONTEXT)

asm(R"(
.text
.type tinydiff_switch, @function
tinydiff_switch:
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
)");
extern "C" void tinydiff_switch(void** left, void* entered);

struct Context {
    void* at = nullptr;                                   // the top of its stack, while it waits

    void prepare(char* stack, size_t size, void (*start)()) {
        uintptr_t top = reinterpret_cast<uintptr_t>(stack + size) / 16 * 16;
        void** p = reinterpret_cast<void**>(top);
        *--p = nullptr;                                   // start() never returns
        *--p = reinterpret_cast<void*>(start);
        for (int i = 0; i < 6; i++)
            *--p = nullptr;                               // the registers to be popped
        at = p;
    }

    void go_to(Context& other) { tinydiff_switch(&at, other.at); }
};

#else
#include <ucontext.h>

struct Context {                                          // the same by the system's own means
    ucontext_t own;

    void prepare(char* stack, size_t size, void (*start)()) {
        getcontext(&own);
        own.uc_stack.ss_sp = stack;
        own.uc_stack.ss_size = size;
        own.uc_link = nullptr;
        makecontext(&own, start, 0);
    }

    void go_to(Context& other) { swapcontext(&own, &other.own); }
};
#endif

class Fiber {
    static constexpr size_t SIZE = 64 * 1024;             // bytes
    static inline Context outside;
    Context inside;
    std::unique_ptr<char[]> stack;

public:
    // Let enter() call start, which ends with leave().
    void begin(void (*start)()) {
        if (!stack)
            stack.reset(new char[SIZE]);
        inside.prepare(stack.get(), SIZE, start);
    }

    void enter() { outside.go_to(inside); }
    void leave() { inside.go_to(outside); }
};
