// wgmma on the CPU. A warp's 16 rows of a product need no other warp, so each warp multiplies by
// itself; and as late as it may, when it waits, so that it shows if tiles were overwritten meanwhile.
#pragma once
#include "warp.hpp"

using Tile = uint64_t;                                    // as on a GPU: address, strides, swizzle

inline Tile tile_of(const bf16* p, bool turned, Here here = Here::current()) {
    uint64_t at = reinterpret_cast<const char*>(p) - block::memory;
    if (at % 1024 || at >= block::asked)
        block::fail("wgmma of a tile that begins at no multiple of 1024 bytes of the shared memory "
                    "asked for", here.line());
    return at >> 4 | uint64_t(turned ? 64 * 128 : 16) >> 4 << 16 | uint64_t(8 * 128) >> 4 << 32
           | uint64_t(1) << 62;
}

inline Tile at_depth(Tile tile, int k, bool turned) { return tile + (turned ? k * 128 : k * 2) / 16; }

// The number in row (or, of b, column) i and depth k
inline float number_at(Tile tile, int i, int k, bool turned) {
    uint64_t start = (tile & 0x3fff) << 4, lead = (tile >> 16 & 0x3fff) << 4;
    uint64_t stride = (tile >> 32 & 0x3fff) << 4;
    uint64_t at = turned ? start + i / 64 * lead + k / 8 * stride + k % 8 * 128 + i % 64 * 2
                         : start + i / 8 * stride + i % 8 * 128 + k * 2;
    at ^= at >> 3 & 0x70;                                 // chunk ^ row % 8
    bf16 value;
    memcpy(&value, block::memory + at, 2);
    return __bfloat162float(value);
}

struct GroupProduct {                                     // one wgmma of a lane, not yet done
    float (*c)[4];
    unsigned a[4];
    Tile a_tile, b_tile;
    bool from_registers, a_turned, b_turned;
    int group;
};

inline std::vector<std::deque<GroupProduct>> asked_for;   // of each thread
inline std::vector<int> groups_closed;

inline std::deque<GroupProduct>& mine() {
    if (asked_for.size() < block::threads.size())
        asked_for.resize(block::threads.size()), groups_closed.resize(block::threads.size());
    return asked_for[block::current];
}

inline void show_copies() { block::threads[block::current].hidden = false; }
inline void wgmma_commit() { mine(), groups_closed[block::current]++; }

inline void wgmma_begin(Here here = Here::current()) {
    for (block::Thread& t : block::threads)
        if (t.hidden)
            block::fail("wgmma may not see what cp.async brought: show_copies() before the barrier",
                        here.line());
}

// c (16, 128) of this warp += a (16, 16) · b (16, 128)
inline void multiply_group(GroupProduct** lanes) {
    const GroupProduct& p = *lanes[0];
    float a[16][16], b[16][128];
    int warp = block::current / block::WARP % 4;
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < 128; n++)
            b[k][n] = number_at(p.b_tile, n, k, p.b_turned);
    for (int l = 0; l < 32; l++)
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < 2; i++) {
                int row = l / 4 + r % 2 * 8, k = l % 4 * 2 + i + r / 2 * 8;
                a[row][k] = p.from_registers ? half_of(lanes[l]->a[r], i)
                                             : number_at(p.a_tile, warp * 16 + row, k, p.a_turned);
            }
    for (int l = 0; l < 32; l++)
        for (int j = 0; j < 16; j++)
            for (int r = 0; r < 4; r++) {
                double sum = lanes[l]->c[j][r];
                for (int k = 0; k < 16; k++)
                    sum += double(a[l / 4 + r / 2 * 8][k]) * b[k][8 * j + l % 4 * 2 + r % 2];
                lanes[l]->c[j][r] = sum;
            }
}

template <int n>
void wgmma_wait(Here here = Here::current()) {
    struct Queue { std::deque<GroupProduct>* products; int before; } q{&mine(), 0};
    q.before = groups_closed[block::current] - n;
    block::together<Queue>(q, [](Queue** lanes, int) {
        while (!lanes[0]->products->empty()
               && lanes[0]->products->front().group < lanes[0]->before) {
            GroupProduct* products[32];
            for (int l = 0; l < 32; l++)
                products[l] = &lanes[l]->products->front();
            multiply_group(products);
            for (int l = 0; l < 32; l++)
                lanes[l]->products->pop_front();
        }
    }, here);
}

template <bool a_turned, bool b_turned>
void wgmma(float (&c)[16][4], Tile a, Tile b) {
    mine().push_back({c, {}, a, b, false, a_turned, b_turned, groups_closed[block::current]});
}

template <bool b_turned>
void wgmma(float (&c)[16][4], const unsigned (&a)[4], Tile b) {
    mine().push_back({c, {a[0], a[1], a[2], a[3]}, 0, b, true, false, b_turned,
                      groups_closed[block::current]});
}
