// What a warp does together, on the CPU: the scheduler calls each instruction once, with the
// operands of all 32 lanes.
#pragma once
#include "block.hpp"

struct Rows { unsigned (&r)[4]; const void* row; };

template <bool trans>
void load_matrices(Rows** lanes, int) {
    for (int m = 0; m < 4; m++)
        for (int l = 0; l < 32; l++) {
            bf16 two[2];
            for (int i = 0; i < 2; i++) {
                int row = trans ? l % 4 * 2 + i : l / 4, column = trans ? l / 4 : l % 4 * 2 + i;
                two[i] = static_cast<const bf16*>(lanes[8 * m + row]->row)[column];
            }
            memcpy(&lanes[l]->r[m], two, 4);
        }
}

inline void refuse_row(const void* row, Here here) {
    if (!block::aligned(row))
        block::fail("ldmatrix of a row that begins at no multiple of 16 bytes", here.line());
    if (!block::in_shared(row, 16))
        block::fail("ldmatrix of a row outside the shared memory", here.line());
}

inline void ldmatrix_x4(unsigned (&r)[4], const void* row, Here here = Here::current()) {
    refuse_row(row, here);
    Rows mine{r, row};
    block::together<Rows>(mine, load_matrices<false>, here);
}

inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, Here here = Here::current()) {
    refuse_row(row, here);
    Rows mine{r, row};
    block::together<Rows>(mine, load_matrices<true>, here);
}

struct Fragments { float (&c)[4]; const unsigned (&a)[4]; unsigned b[2]; };

inline float half_of(unsigned bits, int which) {
    return __bfloat162float({uint16_t(bits >> 16 * which)});
}

// c (16, 8) += a (16, 16) · b (16, 8), gathered from the lanes and handed back to them
inline void multiply(Fragments** lanes, int) {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 2; i++) {
            int row = l / 4, k = l % 4 * 2 + i;
            for (int r = 0; r < 4; r++)
                a[row + r % 2 * 8][k + r / 2 * 8] = half_of(lanes[l]->a[r], i);
            for (int r = 0; r < 2; r++)
                b[k + r * 8][row] = half_of(lanes[l]->b[r], i);
        }
    for (int l = 0; l < 32; l++)
        for (int r = 0; r < 4; r++) {
            double sum = lanes[l]->c[r];
            for (int k = 0; k < 16; k++)
                sum += double(a[l / 4 + r / 2 * 8][k]) * b[k][l % 4 * 2 + r % 2];
            lanes[l]->c[r] = sum;
        }
}

inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                     Here here = Here::current()) {
    Fragments mine{c, a, {b0, b1}};
    block::together<Fragments>(mine, multiply, here);
}
