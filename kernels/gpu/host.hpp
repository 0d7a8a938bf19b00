// The words of device.cuh on the CPU, for the same kernels compiled by the host's C++ compiler.
//
// What a GPU leaves open is made to hurt: what cp.async copies is not there before the wait that asks
// for it; an address that a GPU would refuse is refused. Who runs when: block.hpp
#pragma once
#include <cmath>
#include "block.hpp"

#define DEVICE inline
#define KERNEL(...) extern "C" void
#define __device__
#define __restrict__ __restrict

using std::max, std::min;

struct alignas(8)  float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8)  uint2  { unsigned x, y; };
struct alignas(16) uint4  { unsigned x, y, z, w; };
struct bf16 { uint16_t bits; };                           // a float's upper half
struct alignas(4) bf16x2 { bf16 x, y; };

#define threadIdx block::thread_index
#define blockIdx  block::block_index
#define blockDim  block::block_size
#define gridDim   block::grid_size

inline void __syncthreads(Here here = Here::current()) {
    block::wait(block::AT_BARRIER, here.line());
}

inline void __threadfence() {}

inline char* shared_memory() { return block::memory; }

template <class T>
T& shared() {
    static const unsigned start = [] {
        unsigned first = (block::variables_used + 15) / 16 * 16;
        block::variables_used = first + sizeof(T);
        return first;
    }();
    return *reinterpret_cast<T*>(block::variables + start);
}

// Each lane of a warp gets the value of the lane that it names.
template <class T>
T exchange(T value, int from, Here here) {
    struct Operands { T value; int from; T got; } mine{value, from, value};
    block::together<Operands>(mine, [](Operands** lanes, int count) {
        for (int l = 0; l < count; l++)
            if (lanes[l]->from >= 0 && lanes[l]->from < count)
                lanes[l]->got = lanes[lanes[l]->from]->value;
    }, here);
    return mine.got;
}

inline int lane_index() { return block::current % block::WARP; }

template <class T>
T __shfl_sync(unsigned, T value, int lane, Here here = Here::current()) {
    return exchange(value, lane % block::WARP, here);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, Here here = Here::current()) {
    return exchange(value, lane_index() ^ mask, here);
}

template <class T>
T __shfl_down_sync(unsigned, T value, int step, Here here = Here::current()) {
    return exchange(value, lane_index() + step, here);
}

inline void __syncwarp(unsigned = ~0u, Here here = Here::current()) { exchange(0, 0, here); }

template <class T>
T atomicAdd(T* p, T value) {
    T before = *p;
    *p = before + value;
    return before;
}

inline float __bfloat162float(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline bf16 __float2bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x)
        return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};          // to the nearest, to even
}

inline bf16x2 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16(x), __float2bfloat16(y)};
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float reciprocal_fast(float x) { return 1 / x; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

inline void sincospi(double x, double* sine, double* cosine) {
    *sine = std::sin(3.141592653589793 * x);
    *cosine = std::cos(3.141592653589793 * x);
}

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <class T>
T __ldg(const T* p) { return *p; }


// ---- copies that take their time

inline void cp_async16(void* to, const void* from, bool valid, Here here = Here::current()) {
    if (!block::aligned(to) || (valid && !block::aligned(from)))
        block::fail("cp.async of an address that is no multiple of 16 bytes", here.line());
    if (!block::in_shared(to, 16))
        block::fail("cp.async to outside the shared memory", here.line());
    block::Thread& t = block::threads[block::current];
    t.copies.push_back({to, from, valid, t.groups});
}

inline void cp_commit() { block::threads[block::current].groups++; }

template <int n>
void cp_wait() {
    block::Thread& t = block::threads[block::current];
    for (; !t.copies.empty() && t.copies.front().group < t.groups - n; t.copies.pop_front()) {
        block::Copy& copy = t.copies.front();
        copy.valid ? memcpy(copy.to, copy.from, 16) : memset(copy.to, 0, 16);
        t.hidden = true;                                  // from wgmma
    }
}

#include "warp.hpp"
