// What kernels are written in. On a GPU these are its own instructions, one each, as PTX; on the
// host, where TINYDIFF_HOST is defined, host.hpp has a function of the same name for each.
//
//   bf16                              a float's upper half: 8 bits of exponent, 7 of fraction
//   cp_async16(to, from, valid)       16 bytes, global to shared memory, while others compute;
//                                     zeros where not valid. cp_commit() closes a group of copies,
//                                     cp_wait<n>() waits until at most n groups are on their way
//   ldmatrix_x4(r, row)               four 8 × 8 matrices of bf16, shared memory to registers; lane
//                                     l points at row l % 8 of matrix l / 8. _trans: transposed
//   mma_bf16(c, a, b0, b1)            c (16 × 8 floats) += a (16 × 16) · b (16 × 8), by a warp
//   shared_memory()                   the bytes of shared memory that the launch asks for
//   shared<T>()                       a T in shared memory, one for each type
//
// Lane l of a warp holds of c the rows l / 4 and l / 4 + 8, columns 2 (l % 4) and one more.
#pragma once

#ifdef TINYDIFF_HOST
#include "host.hpp"
#else
#include <cuda_bf16.h>

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, ...) extern "C" __global__ __launch_bounds__(threads, ##__VA_ARGS__) void

using bf16 = __nv_bfloat16;
using bf16x2 = __nv_bfloat162;

DEVICE char* shared_memory() {
    extern __shared__ __align__(1024) char memory[];
    return memory;
}

template <class T>
DEVICE T& shared() {
    __shared__ T variable;
    return variable;
}

DEVICE unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

DEVICE void cp_async16(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

DEVICE void cp_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int n>
DEVICE void cp_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(n) : "memory");
}

DEVICE void ldmatrix_x4(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}

DEVICE void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}

DEVICE void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2ˣ, by the unit for special functions
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x to the last bit or two
DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

// Below, what needs no instruction of its own.

struct alignas(16) bf16x8 { bf16 at[8]; };                // 16 bytes: what a thread should load

DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
DEVICE bf16 to_bf16(float x) { return __float2bfloat16(x); }

// two floats as the bf16s of one register, the first in its lower half
DEVICE unsigned pack(float low, float high) {
    union { bf16x2 two; unsigned bits; } u;
    u.two = __floats2bfloat162_rn(low, high);
    return u.bits;
}

DEVICE float infinity() {
    union { unsigned bits; float value; } u{0x7f800000};
    return u.value;
}

DEVICE float sigmoid(float x) {
    return reciprocal_fast(1.0f + exp2_fast(x * -1.4426950408889634f));   // e⁻ˣ = 2^(−x log₂ e)
}
DEVICE float silu(float x) { return x * sigmoid(x); }

// The sum over the lanes of a warp, for all of them.
template <class T>
DEVICE T warp_sum(T x) {
    for (int step = 16; step; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
