// What a warp does with tiles: products on tensor cores whose sums stay in its registers.
//
// A tile lies in shared memory, rows of D numbers. ldmatrix reads the same chunk, 8 numbers, of
// eight rows at a time; so that these lie in different banks, chunk c of row r is stored as chunk
// c ^ (r % 8).
#pragma once
#include "device.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;

struct Lines {                                            // the rows of one head in an array
    const bf16* first;
    long step;                                            // numbers from one row to the next
    int count, columns;
};

template <int ROWS, int D>
struct Tile {
    alignas(128) bf16 numbers[ROWS * D];

    DEVICE bf16* chunk(int row, int c) {
        int turn = D < 64 ? row / (64 / D) % (D / 8) : row % 8;       // a bank's line is 64 numbers
        return numbers + row * D + (c ^ turn) * 8;
    }

    // Start to copy rows from `first` on, all threads together; zeros where the array has none.
    DEVICE void fetch(Lines from, int first) {
        constexpr int TOGETHER = THREADS / (D / 8);       // rows
        int row = threadIdx.x / (D / 8), c = threadIdx.x % (D / 8);
        const bf16* at = from.first + (first + row) * from.step + 8 * c;
        #pragma unroll 4
        for (; row < ROWS; row += TOGETHER, at += TOGETHER * from.step) {
            bool valid = first + row < from.count && 8 * c < from.columns;
            cp_async16(chunk(row, c), valid ? at : from.first, valid);
        }
    }
};

// A warp's 16 · TILES rows of sums, as mma_bf16 lays them out: of every eighth row, from lane / 4
// on, a thread has columns 8 j + 2 (lane % 4) and one more.
template <int TILES, int COLUMNS>
struct Sums {
    static constexpr int MINE = 2 * TILES;                // rows in which a thread has numbers
    float at[TILES][COLUMNS / 8][4];

    DEVICE Sums() {
        places([&](int t, int j, int r, int, int) { at[t][j][r] = 0; });
    }

    // Call visit(number, i, column) for each; the i-th row of mine is row 8 i + lane / 4.
    template <class Visit>
    DEVICE void each(Visit visit) {
        places([&](int t, int j, int r, int i, int column) { visit(at[t][j][r], i, column); });
    }

    // Call visit(number, other's number there, i, column) for each.
    template <class Visit>
    DEVICE void each(const Sums& other, Visit visit) {
        places([&](int t, int j, int r, int i, int column) {
            visit(at[t][j][r], other.at[t][j][r], i, column);
        });
    }

    template <class Visit>
    static DEVICE void places(Visit visit) {
        #pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++)
            #pragma unroll
            for (int r = 0; r < 2; r++)
                #pragma unroll
                for (int i = 0; i < MINE; i++)
                    visit(i / 2, j, i % 2 * 2 + r, i, 8 * j + threadIdx.x % 4 * 2 + r);
    }

    // += a · bᵀ, over the D columns of both; a's rows begin at `row`
    template <int ROWS, int D>
    DEVICE void add_transposed(Tile<ROWS, D>& a, int row, Tile<COLUMNS, D>& b) {
        const int lane = threadIdx.x % 32;
        #pragma unroll
        for (int c = 0; c < D / 8; c += 2) {              // 16 columns of a and b
            unsigned left[TILES][4];
            #pragma unroll
            for (int t = 0; t < TILES; t++)
                ldmatrix_x4(left[t], a.chunk(row + 16 * t + lane % 16, c + lane / 16));
            #pragma unroll
            for (int j = 0; j < COLUMNS / 8; j += 2) {    // 16 rows of b
                unsigned right[4];
                ldmatrix_x4(right, b.chunk(8 * j + lane / 16 * 8 + lane % 8, c + lane / 8 % 2));
                #pragma unroll
                for (int t = 0; t < TILES; t++) {
                    mma_bf16(at[t][j], left[t], right[0], right[1]);
                    mma_bf16(at[t][j + 1], left[t], right[2], right[3]);
                }
            }
        }
    }

    // += p · b, over the columns of p, which are the rows of b. Two of p's 16 × 8, as sums, lie in
    // the registers in which a factor of 16 × 16 must lie: p never leaves them, but becomes bf16.
    template <int ROWS>
    DEVICE void add(const Sums<TILES, ROWS>& p, Tile<ROWS, COLUMNS>& b) {
        const int lane = threadIdx.x % 32;
        #pragma unroll
        for (int k = 0; k < ROWS / 8; k += 2) {
            unsigned left[TILES][4];
            #pragma unroll
            for (int t = 0; t < TILES; t++)
                #pragma unroll
                for (int r = 0; r < 4; r++)
                    left[t][r] = pack(p.at[t][k + r / 2][r % 2 * 2],
                                      p.at[t][k + r / 2][r % 2 * 2 + 1]);
            #pragma unroll
            for (int j = 0; j < COLUMNS / 8; j += 2) {
                unsigned right[4];
                ldmatrix_x4_trans(right, b.chunk(8 * k + lane % 16, j + lane / 16));
                #pragma unroll
                for (int t = 0; t < TILES; t++) {
                    mma_bf16(at[t][j], left[t], right[0], right[1]);
                    mma_bf16(at[t][j + 1], left[t], right[2], right[3]);
                }
            }
        }
    }

    // Write them as bf16 to rows of an array, `count` of them, by way of the warp's own rows of a
    // tile, which nobody needs any more: so that neighbours write 16 bytes side by side.
    template <int ROWS>
    DEVICE void store(Tile<ROWS, COLUMNS>& tile, int row, bf16* to, long step, int count,
                      int columns) {
        const int lane = threadIdx.x % 32;
        #pragma unroll
        for (int i = 0; i < MINE; i++)
            #pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
                const float* two = &at[i / 2][j][i % 2 * 2];
                bf16* chunk = tile.chunk(row + 8 * i + lane / 4, j);
                *reinterpret_cast<unsigned*>(chunk + lane % 4 * 2) = pack(two[0], two[1]);
            }
        __syncwarp();
        #pragma unroll 4
        for (int i = lane; i < 16 * TILES * COLUMNS / 8; i += 32) {
            int r = i / (COLUMNS / 8), c = i % (COLUMNS / 8);
            if (r < count && 8 * c < columns)
                *reinterpret_cast<bf16x8*>(to + r * step + 8 * c) =
                    *reinterpret_cast<bf16x8*>(tile.chunk(row + r, c));
        }
    }
};
