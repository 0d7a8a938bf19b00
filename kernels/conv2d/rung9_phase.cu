// The weights of a 3 × 3 convolution behind an upsampling, in four phases of 2 × 2 taps.
//
// Output (2i + a, 2j + b) sees, of an image whose pixels stand four times each, the pixels i + u +
// a − 1 of rows u = 0, 1, and which of the three rows of w fall on them: for a = 0 the first, and
// the sum of the other two; for a = 1 the sum of the first two, and the last. Columns likewise.
#include "device.cuh"

// Whether row t of three falls on row u of two in phase a
DEVICE bool falls(int t, int a, int u) { return (t + 1 - a) / 2 == u; }

// phases (2, 2, 2, 2, n), a b u v, = sums of w (3, 3, n), n = C · O
KERNEL(256) sum_taps(const bf16* __restrict__ w, bf16* __restrict__ phases, int n) {
    int i = blockIdx.x * 256 + threadIdx.x, matrix = blockIdx.y;
    if (i >= n)
        return;
    float sum = 0;
    for (int t = 0; t < 9; t++)
        if (falls(t / 3, matrix / 8, matrix / 2 % 2) && falls(t % 3, matrix / 4 % 2, matrix % 2))
            sum += to_float(w[(long)t * n + i]);
    phases[(long)matrix * n + i] = to_bf16(sum);
}

// The way back: dw (3, 3, n) from the gradients of the phases, in float32
KERNEL(256) give_back(const float* __restrict__ phases, float* __restrict__ dw, int n) {
    int i = blockIdx.x * 256 + threadIdx.x, t = blockIdx.y;
    if (i >= n)
        return;
    float sum = 0;
    for (int matrix = 0; matrix < 16; matrix++)
        if (falls(t / 3, matrix / 8, matrix / 2 % 2) && falls(t % 3, matrix / 4 % 2, matrix % 2))
            sum += phases[(long)matrix * n + i];
    dw[(long)t * n + i] = sum;
}
