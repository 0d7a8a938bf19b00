// Scores and the weights that they become. A power of 2 is one instruction: eˢ = 2^(s · log₂ e).
#pragma once
#include "fragments.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// What is added to the scores of one head: a bias, and −∞ where nothing may be seen. Rows are
// queries and columns keys, or the other way round.
struct Added {
    const float* numbers;                                 // null: 0
    long row_step, column_step;                           // 0: all the same
    int rows, columns;                                    // that there are

    DEVICE float operator()(int row, int column) const {
        if (row >= rows || column >= columns)
            return -infinity();
        return numbers ? numbers[row * row_step + column * column_step] * LOG2_E : 0;
    }

    DEVICE Added turned() const { return {numbers, column_step, row_step, columns, rows}; }
};

// q kᵀ -> scores · log₂ e, for rows from `row` on, of which this thread has every eighth
template <int TILES, int COLUMNS>
DEVICE void become_scores(Sums<TILES, COLUMNS>& s, float scale, const Added& added, int row,
                          int column) {
    const float factor = scale * LOG2_E;
    if (!added.numbers && column + COLUMNS <= added.columns)
        s.each([&](float& x, int, int) { x *= factor; });
    else
        s.each([&](float& x, int i, int c) { x = x * factor + added(row + 8 * i, column + c); });
}

// 0 for −∞: then 2^(−∞ − x) is 0, not NaN
DEVICE float finite(float x) { return x == -infinity() ? 0 : x; }

// What has been seen of each row of scores: the highest, and Σ 2^(s − highest).
template <int TILES>
struct Seen {
    float highest[2 * TILES], sum[2 * TILES];

    DEVICE Seen() {
        #pragma unroll
        for (int i = 0; i < 2 * TILES; i++)
            highest[i] = -infinity(), sum[i] = 0;
    }

    // s -> 2^(s − highest). Where there is a new highest, what was summed before shrinks. The sums
    // are those of this thread alone, over its columns.
    template <int COLUMNS, int D>
    DEVICE void absorb(Sums<TILES, COLUMNS>& s, Sums<TILES, D>& y) {
        float high[2 * TILES], fade[2 * TILES];
        #pragma unroll
        for (int i = 0; i < 2 * TILES; i++)
            high[i] = highest[i];
        s.each([&](float& x, int i, int) { high[i] = fmaxf(high[i], x); });
        #pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            high[i] = fmaxf(high[i], __shfl_xor_sync(0xffffffffu, high[i], 1));
            high[i] = fmaxf(high[i], __shfl_xor_sync(0xffffffffu, high[i], 2));   // of 4 lanes
            fade[i] = exp2_fast(highest[i] - finite(high[i]));
            sum[i] *= fade[i];
            highest[i] = high[i];
        }
        s.each([&](float& x, int i, int) {
            x = exp2_fast(x - finite(high[i]));
            sum[i] += x;
        });
        y.each([&](float& x, int i, int) { x *= fade[i]; });
    }

    // y -> y / sum; a row that saw nothing stays 0. sum: now that of the whole row.
    template <int D>
    DEVICE void finish(Sums<TILES, D>& y) {
        float share[2 * TILES];
        #pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
            share[i] = sum[i] == 0 ? 0 : 1 / sum[i];
        }
        y.each([&](float& x, int i, int) { x *= share[i]; });
    }

    // log Σ eˢ of my i-th row, −∞ where it saw nothing
    DEVICE float log_sum(int i) const { return (highest[i] + log2f(sum[i])) / LOG2_E; }
};
