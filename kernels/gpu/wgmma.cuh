// wgmma: four warps, a warpgroup, multiply 64 × 16 by 16 × 128 in one instruction, which reads b, and
// if one likes a, from shared memory by itself, while its threads go on.
//
//   tile_of(p, turned)      how the instruction finds a tile that lies as tiles.cuh says: the swizzle
//                           there is the hardware's own, of 128 bytes; p is a multiple of 1024 bytes
//   at_depth(tile, k, turned)         the same tile from column (turned: row) k on
//   wgmma(c, a, b)          c (64 × 128 floats) += a (64 × 16) · b (16 × 128); a is a tile, or four
//                           registers, as mma_bf16 has them, of the warp's 16 rows
//   wgmma_begin()           before the first: the registers are the instruction's from here on,
//   wgmma_commit()          what was asked for since then is a group,
//   wgmma_wait<n>()         until which, but for n groups, nobody touches registers or tiles
//   show_copies()           make what cp.async has brought visible to it, before the barrier
#pragma once
#include "tiles.cuh"

#ifdef TINYDIFF_HOST
#include "warpgroup.hpp"
#else

using Tile = unsigned long long;                          // address, strides and swizzle

DEVICE Tile tile_of(const bf16* p, bool turned) {
    const Tile sixteenths = 4, panel = 64 * DEPTH * 2, eight_rows = 8 * DEPTH * 2;        // bytes
    return shared_address(p) >> sixteenths | (turned ? panel : 16) >> sixteenths << 16
           | eight_rows >> sixteenths << 32 | Tile(1) << 62;
}

DEVICE Tile at_depth(Tile tile, int k, bool turned) {
    return tile + (turned ? k * DEPTH * 2 : k * 2) / 16;
}

DEVICE void show_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int n>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(n) : "memory");
}

#define FOUR(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SIXTY_FOUR(c) FOUR(c, 0), FOUR(c, 1), FOUR(c, 2), FOUR(c, 3), FOUR(c, 4), FOUR(c, 5), \
    FOUR(c, 6), FOUR(c, 7), FOUR(c, 8), FOUR(c, 9), FOUR(c, 10), FOUR(c, 11), FOUR(c, 12), \
    FOUR(c, 13), FOUR(c, 14), FOUR(c, 15)
#define REGISTERS "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
    "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, " \
    "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
    "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

template <bool a_turned, bool b_turned>
DEVICE void wgmma(float (&c)[16][4], Tile a, Tile b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " REGISTERS
                 ", %64, %65, 1, 1, 1, %66, %67;"
                 : SIXTY_FOUR(c) : "l"(a), "l"(b), "n"(int(a_turned)), "n"(int(b_turned)));
}

template <bool b_turned>
DEVICE void wgmma(float (&c)[16][4], const unsigned (&a)[4], Tile b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " REGISTERS
                 ", {%64, %65, %66, %67}, %68, 1, 1, 1, %69;"
                 : SIXTY_FOUR(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(b_turned)));
}
#endif

struct GroupSums {                                        // 128 × 128 of a warpgroup
    static constexpr int LINES = 4, PAIRS = 16, FRAGMENTS = 2;
    float c[2][16][4] = {};                               // 64 rows, 8 columns, number

    static DEVICE int row(const Warp& w, int line) {
        return line / 2 * 64 + threadIdx.x / 32 * 16 + line % 2 * 8 + w.lane / 4;
    }
    static DEVICE int column(const Warp& w, int pair) { return 8 * pair + w.lane % 4 * 2; }
    DEVICE float& at(int line, int pair, int i) { return c[line / 2][pair][line % 2 * 2 + i]; }
    static DEVICE int fragment(const Warp&, int i) { return 64 * i + threadIdx.x / 32 * 16; }
    static DEVICE void before_barrier() { show_copies(); }

    // += a · b of two tiles, 64 deep
    template <bool a_turned, bool b_turned>
    DEVICE void add(const Stage& tiles, const Warp&) {
        wgmma_begin();
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            Tile a = tile_of(tiles.a + half * 64 * DEPTH, a_turned), b = tile_of(tiles.b, b_turned);
            #pragma unroll
            for (int k = 0; k < DEPTH; k += 16)
                wgmma<a_turned, b_turned>(c[half], at_depth(a, k, a_turned),
                                          at_depth(b, k, b_turned));
        }
        wgmma_commit();
        wgmma_wait<0>();
    }

    // The same where a's rows stand anywhere: this lane points at row rows[i] + shift
    template <bool b_turned>
    DEVICE void add_rows(const bf16* a_rows, const int (&rows)[2], int shift, const bf16* b_tile,
                         const Warp& w) {
        unsigned a[2][DEPTH / 16][4];
        #pragma unroll
        for (int i = 0; i < 2; i++)
            #pragma unroll
            for (int k = 0; k < DEPTH / 16; k++)
                ldmatrix_x4(a[i][k], a_rows + place(rows[i] + shift, 2 * k + w.lane / 16));
        const Tile b = tile_of(b_tile, b_turned);
        wgmma_begin();
        #pragma unroll
        for (int i = 0; i < 2; i++)
            #pragma unroll
            for (int k = 0; k < DEPTH / 16; k++)
                wgmma<b_turned>(c[i], a[i][k], at_depth(b, 16 * k, b_turned));
        wgmma_commit();
        wgmma_wait<0>();
    }
};
