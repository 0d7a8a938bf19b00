// A convolution as products of tiles that are gathered on the way, summed as BlockSums says.
//
//     y[n, i·step + a, j·step + b, o] = Σ_t Σ_c x[n, i·stride + y_t, j·stride + x_t, c] · w_t[c, o]
//
// Outputs are told apart by their phase (a, b); each phase has taps t of its own, rows (y, x, which
// matrix of w) of a table. What a table can say: a convolution with any window, stride and padding,
// its gradient for the input, and, in phases, one behind an upsampling.  rung7_mma.py, rung9_phase.py
#pragma once
#include "tiles.cuh"

struct Place { int n; short i, j; };                      // of a phase's output, in two registers

DEVICE Place place_of(int m, int rows, int columns) {
    return {m / (rows * columns), short(m / columns % rows), short(m % columns)};
}

struct Picture {                                          // x ‖ skip, side by side: (N, H, W, C)
    const bf16* x;
    const bf16* skip;
    int H, W, C1, C;

    // Eight channels from c on of a pixel, zeros where there is none
    DEVICE Chunk operator()(int n, int y, int column, int c, bool valid) const {
        valid = valid && (unsigned)y < (unsigned)H && (unsigned)column < (unsigned)W && c < C;
        long pixel = ((long)n * H + y) * W + column;
        const bf16* at = c < C1 ? x + pixel * C1 + c : skip + pixel * (C - C1) + (c - C1);
        return {valid ? at : x, valid};
    }
};

// turned: w_t is (C, O), its rows are k; else (O, C), as the gradient for the input takes it
template <bool turned>
DEVICE void gather(Picture picture, const bf16* w, const int* taps, const float* b,
                   bf16* y, bf16* y2, int N, int count, int stride, int step,
                   int H2, int W2, int O1, int O) {
    const int phase = blockIdx.z, rows = (H2 - phase / step + step - 1) / step;
    const int columns = (W2 - phase % step + step - 1) / step, M = N * rows * columns;
    const int first_m = blockIdx.x * SIDE, first_o = blockIdx.y * SIDE;
    if (first_m >= M)
        return;
    taps += phase * count * 3;
    const int slabs = (picture.C + DEPTH - 1) / DEPTH;
    Place mine[8];                                        // the outputs whose inputs I copy
    #pragma unroll
    for (int i = 0; i < 8; i++)
        mine[i] = place_of(first_m + threadIdx.x / 8 + 16 * i, rows, columns);
    Warp warp;
    BlockSums sums;
    multiply_all<false, turned>(sums, warp, count * slabs, [&](Stage& stage, int at) {
        const int slab = at / count, channel = slab * DEPTH;
        const int* tap = taps + (at - slab * count) * 3;
        const int y = tap[0], x = tap[1];
        const bf16* matrix = w + (long)max(tap[2], 0) * picture.C * O;      // −1: no tap, x is 0
        copy_tile(stage.a, [&](int i, int row, int c) {
            return picture(mine[i].n, mine[i].i * stride + y, mine[i].j * stride + x,
                           channel + 8 * c, first_m + row < M && tap[2] >= 0);
        });
        if constexpr (turned)
            copy_turned(stage.b, [&](int, int k, int c) {
                bool valid = channel + k < picture.C && first_o + 8 * c < O;
                return Chunk{valid ? matrix + (channel + k) * O + first_o + 8 * c : w, valid};
            });
        else
            copy_tile(stage.b, [&](int, int row, int c) {
                bool valid = first_o + row < O && channel + 8 * c < picture.C;
                return Chunk{valid ? matrix + (first_o + row) * picture.C + channel + 8 * c : w,
                             valid};
            });
    });
    for_each(sums, warp, [&](int row, int column, float u, float v) {
        Place p = place_of(first_m + row, rows, columns);
        int o = first_o + column;
        if (first_m + row >= M || o >= O)
            return;
        if (b)
            u += b[o], v += b[o + 1];
        long pixel = ((long)p.n * H2 + p.i * step + phase / step) * W2 + p.j * step + phase % step;
        if (o < O1)
            store_pair(y + pixel * O1, o, O1, u, v);
        else
            store_pair(y2 + pixel * (O - O1), o - O1, O - O1, u, v);
    });
}

KERNEL(128, 2) forward(const bf16* __restrict__ x, const bf16* __restrict__ skip,
                       const bf16* __restrict__ w, const int* __restrict__ taps,
                       const float* __restrict__ b, bf16* __restrict__ y,
                       int N, int H, int W, int C1, int C, int count, int stride, int step,
                       int H2, int W2, int O) {
    gather<true>({x, skip, H, W, C1, C}, w, taps, b, y, y, N, count, stride, step, H2, W2, O, O);
}

// x is dy; dx and dskip take the O channels of the input apart, O1 of them in the first
KERNEL(128, 2) grad_input(const bf16* __restrict__ x, const bf16* __restrict__ w,
                          const int* __restrict__ taps, bf16* __restrict__ dx,
                          bf16* __restrict__ dskip, int N, int H, int W, int C, int count,
                          int stride, int step, int H2, int W2, int O1, int O) {
    gather<false>({x, x, H, W, C, C}, w, taps, nullptr, dx, dskip, N, count, stride, step, H2, W2,
                  O1, O);
}

// dw[part, t, c, o] = Σ x[n, i·stride + y_t, j·stride + x_t, c] · dy[n, i·step + a, j·step + b, o]
// over the outputs of a part, `each` of them; blockIdx.z tells part and tap.
KERNEL(128, 2) grad_weight(const bf16* __restrict__ x, const bf16* __restrict__ skip,
                           const bf16* __restrict__ dy, const int* __restrict__ taps,
                           float* __restrict__ dw, int N, int H, int W, int C1, int C,
                           int count, int phases, int stride, int step, int H2, int W2, int O,
                           int each) {
    const int first_c = blockIdx.x * SIDE, first_o = blockIdx.y * SIDE;
    const int t = blockIdx.z % (count * phases), part = blockIdx.z / (count * phases);
    const int phase = t / count, rows = (H2 - phase / step + step - 1) / step;
    const int columns = (W2 - phase % step + step - 1) / step, M = N * rows * columns;
    const int from = part * each, end = min(from + each, M);
    const int y = taps[t * 3], column = taps[t * 3 + 1];
    const bool used = taps[t * 3 + 2] >= 0;
    const Picture picture{x, skip, H, W, C1, C};
    Warp warp;
    BlockSums sums;
    multiply_all<true, true>(sums, warp, used ? (end - from + DEPTH - 1) / DEPTH : 0,
                             [&](Stage& stage, int at) {
        const int c = threadIdx.x % 16 * 8;
        #pragma unroll
        for (int k = threadIdx.x / 16; k < DEPTH; k += THREADS / 16) {
            const int m = from + at * DEPTH + k;
            const Place p = place_of(m, rows, columns);
            const Chunk a = picture(p.n, p.i * stride + y, p.j * stride + column, first_c + c,
                                    m < end);
            const int pixel = (p.n * H2 + p.i * step + phase / step) * W2 + p.j * step + phase % step;
            const bool valid = m < end && first_o + c < O;
            cp_async16(stage.a + place_turned(k, c), a.at, a.valid);
            cp_async16(stage.b + place_turned(k, c),
                       valid ? dy + (long)pixel * O + first_o + c : dy, valid);
        }
    });
    dw += ((long)part * count * phases + t) * C * O;
    for_each(sums, warp, [&](int row, int o, float u, float v) {
        if (first_c + row < C && first_o + o < O)
            *reinterpret_cast<float2*>(dw + (long)(first_c + row) * O + first_o + o) = {u, v};
    });
}
