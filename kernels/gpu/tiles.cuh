// The heart of every product on tensor cores: a block of 128 threads makes 128 × 128 sums
//
//     c[m, n] = Σ_k a[m, k] · b[k, n]
//
// from tiles of a and b, 64 deep, that travel through shared memory in a pipeline of three stages.
// Four warps stand 2 × 2 over the sums; each has 64 × 64 of them in registers, so that what it loads
// is multiplied often.
//
// A tile has rows of 64 numbers: 128 bytes, all banks of the shared memory once. ldmatrix reads the
// same chunk of eight rows at a time; so that these lie in different banks, chunk c of row r is
// stored as chunk c ^ (r % 8). A tile may hold its matrix as it is multiplied, a row a line of k
// (a: rows m; b: rows n), or turned, a row a k: then it is two panels of 64 columns, side by side.
#pragma once
#include "device.cuh"

constexpr int THREADS = 128, SIDE = 128, DEPTH = 64, STAGES = 3;
constexpr int TILE = SIDE * DEPTH;                        // numbers

struct Stage { bf16 a[TILE], b[TILE]; };
struct Chunk { const bf16* at; bool valid; };             // eight numbers; zeros where not valid

// Where chunk c, eight numbers, of row r stands in a tile
DEVICE int place(int r, int c) { return r * DEPTH + ((c ^ r) & 7) * 8; }

// Where, if the tile is turned: row k, column i of 128
DEVICE int place_turned(int k, int i) { return i / 64 * 64 * DEPTH + place(k, i % 64 / 8); }

struct Warp {                                             // which part of the sums is this thread's
    int lane = threadIdx.x % 32, m = threadIdx.x / 32 % 2 * 64, n = threadIdx.x / 64 * 64;
};

// a (16 × 16) at row m, column k of a tile
template <bool turned>
DEVICE void load_a(unsigned (&a)[4], const bf16* tile, int m, int k, int lane) {
    if (turned)
        ldmatrix_x4_trans(a, tile + place_turned(k + lane / 16 * 8 + lane % 8,
                                                 m + lane / 8 % 2 * 8));
    else
        ldmatrix_x4(a, tile + place(m + lane % 16, k / 8 + lane / 16));
}

// Two of b (16 × 8) side by side, from column n on: b[0], b[1] and b[2], b[3]
template <bool turned>
DEVICE void load_b(unsigned (&b)[4], const bf16* tile, int k, int n, int lane) {
    if (turned)
        ldmatrix_x4_trans(b, tile + place_turned(k + lane % 16, n + lane / 16 * 8));
    else
        ldmatrix_x4(b, tile + place(n + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
}

struct Sums {                                             // 64 × 64, as mma_bf16 lays them out
    static constexpr int LINES = 8, PAIRS = 8, FRAGMENTS = 4;
    float c[4][8][4] = {};                                // 16 rows, 8 columns, number

    // Of the sums in this thread: the row of a line, the first column of a pair, and one of a pair
    static DEVICE int row(const Warp& w, int line) { return w.m + 8 * line + w.lane / 4; }
    static DEVICE int column(const Warp& w, int pair) { return w.n + 8 * pair + w.lane % 4 * 2; }
    DEVICE float& at(int line, int pair, int i) { return c[line / 2][pair][line % 2 * 2 + i]; }
    static DEVICE int fragment(const Warp& w, int i) { return w.m + 16 * i; }
    static DEVICE void before_barrier() {}

    // += a (64 × 16) · b (16 × 64)
    DEVICE void add(const unsigned (&a)[4][4], const unsigned (&b)[4][4]) {
        #pragma unroll
        for (int i = 0; i < 4; i++)
            #pragma unroll
            for (int j = 0; j < 8; j++)
                mma_bf16(c[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }

    // += a · b of two tiles, 64 deep
    template <bool a_turned, bool b_turned>
    DEVICE void add(const Stage& tiles, const Warp& w) {
        #pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned a[4][4], b[4][4];
            #pragma unroll
            for (int i = 0; i < 4; i++)
                load_a<a_turned>(a[i], tiles.a, w.m + 16 * i, k, w.lane);
            #pragma unroll
            for (int j = 0; j < 4; j++)
                load_b<b_turned>(b[j], tiles.b, k, w.n + 16 * j, w.lane);
            add(a, b);
        }
    }

    // The same where a's rows stand anywhere: this lane points at row rows[i] + shift
    template <bool b_turned>
    DEVICE void add_rows(const bf16* a_rows, const int (&rows)[4], int shift, const bf16* b_tile,
                         const Warp& w) {
        #pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned a[4][4], b[4][4];
            #pragma unroll
            for (int i = 0; i < 4; i++)
                ldmatrix_x4(a[i], a_rows + place(rows[i] + shift, k / 8 + w.lane / 16));
            #pragma unroll
            for (int j = 0; j < 4; j++)
                load_b<b_turned>(b[j], b_tile, k, w.n + 16 * j, w.lane);
            add(a, b);
        }
    }
};

// Call change(row, column, sum, sum) for each pair of neighbours, by reference
template <class AnySums, class Change>
DEVICE void for_each(AnySums& sums, const Warp& w, Change change) {
    #pragma unroll
    for (int line = 0; line < AnySums::LINES; line++)
        #pragma unroll
        for (int pair = 0; pair < AnySums::PAIRS; pair++)
            change(AnySums::row(w, line), AnySums::column(w, pair), sums.at(line, pair, 0),
                   sums.at(line, pair, 1));
}

// Start copies of a tile: the i-th row that this thread takes, row, chunk -> from where
template <class From>
DEVICE void copy_tile(bf16* tile, From from) {
    #pragma unroll
    for (int i = 0; i < TILE / 8 / THREADS; i++) {
        int row = threadIdx.x / 8 + i * (THREADS / 8), c = threadIdx.x % 8;
        Chunk chunk = from(i, row, c);
        cp_async16(tile + place(row, c), chunk.at, chunk.valid);
    }
}

// The same for a turned tile: 64 rows k, 16 chunks
template <class From>
DEVICE void copy_turned(bf16* tile, From from) {
    #pragma unroll
    for (int i = 0; i < TILE / 8 / THREADS; i++) {
        int k = threadIdx.x / 16 + i * (THREADS / 16), c = threadIdx.x % 16;
        Chunk chunk = from(i, k, c);
        cp_async16(tile + place_turned(k, c * 8), chunk.at, chunk.valid);
    }
}

// All steps of the pipeline: copy(stage, step) starts the copies of a step's tiles, and two steps
// later, when they have landed, they are multiplied.
template <bool a_turned, bool b_turned, class AnySums, class Copy>
DEVICE void multiply_all(AnySums& sums, const Warp& w, int steps, Copy copy) {
    Stage* stages = reinterpret_cast<Stage*>(shared_memory());
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps)
            copy(stages[step], step);
        cp_commit();
    }
    for (int step = 0; step < steps; step++) {
        cp_wait<STAGES - 2>();
        AnySums::before_barrier();
        __syncthreads();                                  // all copies are here, all reads are done
        int next = step + STAGES - 1;
        if (next < steps)
            copy(stages[next % STAGES], next);
        cp_commit();
        sums.template add<a_turned, b_turned>(stages[step % STAGES], w);
    }
}

// Two neighbours of a row of O numbers, as bf16, as far as they are in it
DEVICE void store_pair(bf16* row, int o, int O, float first, float second) {
    if (o + 1 < O && O % 2 == 0)
        *reinterpret_cast<unsigned*>(row + o) = pack(first, second);
    else {
        if (o < O)
            row[o] = to_bf16(first);
        if (o + 1 < O)
            row[o + 1] = to_bf16(second);
    }
}
