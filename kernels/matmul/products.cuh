// The three products of a linear layer, 128 × 128 results a block, summed as BlockSums says.
//
//     forward       y (P, O)  = x (P, C) · w (C, O) + b + add          w is turned: its rows are k
//     grad_input    dx (P, C) = dy (P, O) · wᵀ                         w as it lies: its rows are n
//     grad_weight   dw (C, O) = xᵀ · dy, over the P of one part        both turned: their rows are k
//
// C and O are multiples of 8: a copy moves 16 bytes. x is one array (P, C), or two, C1 of the
// channels in the first.
#pragma once
#include "tiles.cuh"

// Chunk c of row p of the arrays x ‖ skip, which stand side by side
DEVICE Chunk side_by_side(const bf16* x, const bf16* skip, int C1, int C, long p, int c, bool valid) {
    int column = 8 * c;
    const bf16* at = column < C1 ? x + p * C1 + column : skip + p * (C - C1) + column - C1;
    valid = valid && column < C;
    return {valid ? at : x, valid};
}

KERNEL(128, 2) forward(const bf16* __restrict__ x, const bf16* __restrict__ skip,
                       const bf16* __restrict__ w, const float* __restrict__ b,
                       const bf16* __restrict__ add, bf16* __restrict__ y,
                       int P, int C1, int C, int O) {
    const int first_p = blockIdx.x * SIDE, first_o = blockIdx.y * SIDE;
    Warp warp;
    BlockSums sums;
    multiply_all<false, true>(sums, warp, (C + DEPTH - 1) / DEPTH, [&](Stage& stage, int step) {
        copy_tile(stage.a, [&](int, int row, int c) {
            int p = first_p + row;
            return side_by_side(x, skip, C1, C, p, step * 8 + c, p < P);
        });
        copy_turned(stage.b, [&](int, int k, int c) {
            int channel = step * DEPTH + k, o = first_o + 8 * c;
            bool valid = channel < C && o < O;
            return Chunk{valid ? w + (long)channel * O + o : w, valid};
        });
    });
    for_each(sums, warp, [&](int row, int column, float u, float v) {
        int p = first_p + row, o = first_o + column;
        if (p >= P || o >= O)
            return;
        if (b)
            u += b[o], v += b[o + 1];
        if (add)
            u += to_float(add[(long)p * O + o]), v += to_float(add[(long)p * O + o + 1]);
        store_pair(y + (long)p * O, o, O, u, v);
    });
}

KERNEL(128, 2) grad_input(const bf16* __restrict__ dy, const bf16* __restrict__ w,
                          bf16* __restrict__ dx, bf16* __restrict__ dskip,
                          int P, int C1, int C, int O) {
    const int first_p = blockIdx.x * SIDE, first_c = blockIdx.y * SIDE;
    Warp warp;
    BlockSums sums;
    multiply_all<false, false>(sums, warp, (O + DEPTH - 1) / DEPTH, [&](Stage& stage, int step) {
        copy_tile(stage.a, [&](int, int row, int c) {
            int p = first_p + row, o = step * DEPTH + 8 * c;
            bool valid = p < P && o < O;
            return Chunk{valid ? dy + (long)p * O + o : dy, valid};
        });
        copy_tile(stage.b, [&](int, int row, int c) {
            int channel = first_c + row, o = step * DEPTH + 8 * c;
            bool valid = channel < C && o < O;
            return Chunk{valid ? w + (long)channel * O + o : w, valid};
        });
    });
    for_each(sums, warp, [&](int row, int column, float u, float v) {
        int p = first_p + row, c = first_c + column;
        if (p >= P || c >= C)
            return;
        if (c < C1)
            store_pair(dx + (long)p * C1, c, C1, u, v);
        else
            store_pair(dskip + (long)p * (C - C1), c - C1, C - C1, u, v);
    });
}

// The rows of x and dy are cut into gridDim.z parts of `each`; each part has a dw of its own.
KERNEL(128, 2) grad_weight(const bf16* __restrict__ x, const bf16* __restrict__ skip,
                           const bf16* __restrict__ dy, float* __restrict__ dw,
                           int P, int C1, int C, int O, int each) {
    const int first_c = blockIdx.x * SIDE, first_o = blockIdx.y * SIDE;
    const int from = blockIdx.z * each, end = min(from + each, P);
    Warp warp;
    BlockSums sums;
    multiply_all<true, true>(sums, warp, (end - from + DEPTH - 1) / DEPTH,
                             [&](Stage& stage, int step) {
        copy_turned(stage.a, [&](int, int k, int c) {
            int p = from + step * DEPTH + k;
            return side_by_side(x, skip, C1, C, p, first_c / 8 + c, p < end);
        });
        copy_turned(stage.b, [&](int, int k, int c) {
            int p = from + step * DEPTH + k, o = first_o + 8 * c;
            bool valid = p < end && o < O;
            return Chunk{valid ? dy + (long)p * O + o : dy, valid};
        });
    });
    dw += (long)blockIdx.z * C * O;
    for_each(sums, warp, [&](int row, int column, float u, float v) {
        int c = first_c + row, o = first_o + column;
        if (c < C && o < O)
            *reinterpret_cast<float2*>(dw + (long)c * O + o) = {u, v};
    });
}
