// Functions of single numbers, upsampling, sums over pixels: a thread has 16 bytes of each array.
// holds: LDG.E.128
#include "columns.cuh"

DEVICE float plus(float x, float y) { return x + y; }
DEVICE float times(float x, float y) { return x * y; }
DEVICE float silu_of(float x) { return silu(x); }
DEVICE float gelu_of(float x) { return 0.5f * x * erfcf(-0.70710678f * x); }        // x Φ(x)

// dy · σ (1 + x (1 − σ))
DEVICE float silu_slope(float dy, float x) {
    float s = sigmoid(x);
    return dy * (s * (1 + x * (1 - s)));
}

// dy · (Φ(x) + x φ(x)), φ(x) = e^(−x² / 2) / √2π
DEVICE float gelu_slope(float dy, float x) {
    float density = 0.39894228f * exp2_fast(x * x * -0.72134752f);        // e^z = 2^(z log₂ e)
    return dy * (0.5f * erfcf(-0.70710678f * x) + x * density);
}

// The vector that a thread has of n numbers, and how many of those there are
template <class T>
DEVICE long vector_of(long n, int& count) {
    long i = (blockIdx.x * 256l + threadIdx.x) * LANES<T>;
    count = n - i < LANES<T> ? max(n - i, 0l) : LANES<T>;
    return i;
}

// out = f(x), number by number
template <float (*f)(float), class T>
DEVICE void of_one(const T* x, T* out, long n) {
    int count;
    long i = vector_of<T>(n, count);
    bool whole = count == LANES<T> && aligned(x) && aligned(out);
    float y[LANES<T>];
    load(y, x + i, count, whole);
    #pragma unroll
    for (int v = 0; v < LANES<T>; v++)
        y[v] = f(y[v]);
    store(out + i, y, count, whole);
}

// out = f(x, y); out may be one of them
template <float (*f)(float, float), class T>
DEVICE void of_two(const T* x, const T* y, T* out, long n) {
    int count;
    long i = vector_of<T>(n, count);
    bool whole = count == LANES<T> && aligned(x) && aligned(y) && aligned(out);
    float a[LANES<T>], b[LANES<T>];
    load(a, x + i, count, whole);
    load(b, y + i, count, whole);
    #pragma unroll
    for (int v = 0; v < LANES<T>; v++)
        a[v] = f(a[v], b[v]);
    store(out + i, a, count, whole);
}

KERNEL(256) add_float(const float* x, const float* y, float* out, long n) {
    of_two<plus>(x, y, out, n);
}
KERNEL(256) add_bf16(const bf16* x, const bf16* y, bf16* out, long n) {
    of_two<plus>(x, y, out, n);
}
KERNEL(256) mul_float(const float* x, const float* y, float* out, long n) {
    of_two<times>(x, y, out, n);
}
KERNEL(256) mul_bf16(const bf16* x, const bf16* y, bf16* out, long n) {
    of_two<times>(x, y, out, n);
}
KERNEL(256) silu_float(const float* x, float* out, long n) { of_one<silu_of>(x, out, n); }
KERNEL(256) silu_bf16(const bf16* x, bf16* out, long n) { of_one<silu_of>(x, out, n); }
KERNEL(256) gelu_float(const float* x, float* out, long n) { of_one<gelu_of>(x, out, n); }
KERNEL(256) gelu_bf16(const bf16* x, bf16* out, long n) { of_one<gelu_of>(x, out, n); }
KERNEL(256) silu_backward_float(const float* dy, const float* x, float* out, long n) {
    of_two<silu_slope>(dy, x, out, n);
}
KERNEL(256) silu_backward_bf16(const bf16* dy, const bf16* x, bf16* out, long n) {
    of_two<silu_slope>(dy, x, out, n);
}
KERNEL(256) gelu_backward_float(const float* dy, const float* x, float* out, long n) {
    of_two<gelu_slope>(dy, x, out, n);
}
KERNEL(256) gelu_backward_bf16(const bf16* dy, const bf16* x, bf16* out, long n) {
    of_two<gelu_slope>(dy, x, out, n);
}


// To bf16 and back: 16 bytes of the narrow array, 32 of the wide one
KERNEL(256) narrow(const float* __restrict__ x, bf16* __restrict__ out, long n) {
    int count;
    long i = vector_of<bf16>(n, count);
    float y[8];
    load_floats(y, x + i, count);
    store(out + i, y, count, count == 8 && aligned(out));
}

KERNEL(256) widen(const bf16* __restrict__ x, float* __restrict__ out, long n) {
    int count;
    long i = vector_of<bf16>(n, count);
    float y[8];
    load(y, x + i, count, count == 8 && aligned(x));
    store_floats(out + i, y, count);
}


// One vector of the small image, and the four of the large one that lie over it
template <class T>
struct Four {
    long small, large[4];
    int count;
    bool whole;

    // pixels: of all small images, which are W wide and C deep
    DEVICE Four(const T* x, const T* y, long pixels, int W, int C) {
        int vectors = (C + LANES<T> - 1) / LANES<T>;
        long i = blockIdx.x * 256l + threadIdx.x, pixel = i / vectors;
        int c = i % vectors * LANES<T>;
        long row = pixel / W, column = pixel % W;
        count = pixel < pixels ? min(C - c, LANES<T>) : 0;
        whole = count == LANES<T> && C % LANES<T> == 0 && aligned(x) && aligned(y);
        small = pixel * C + c;
        for (int k = 0; k < 4; k++)
            large[k] = ((2 * row + k / 2) * 2 * W + 2 * column + k % 2) * C + c;
    }
};

template <class T>
DEVICE void spread(const T* x, T* y, long pixels, int W, int C) {
    Four<T> at(x, y, pixels, W, C);
    float v[LANES<T>];
    load(v, x + at.small, at.count, at.whole);
    #pragma unroll
    for (int k = 0; k < 4; k++)
        store(y + at.large[k], v, at.count, at.whole);
}

template <class T>
DEVICE void gather(const T* dy, T* dx, long pixels, int W, int C) {
    Four<T> at(dx, dy, pixels, W, C);
    float v[4][LANES<T>];
    #pragma unroll
    for (int k = 0; k < 4; k++)
        load(v[k], dy + at.large[k], at.count, at.whole);
    #pragma unroll
    for (int i = 0; i < LANES<T>; i++)
        v[0][i] = (v[0][i] + v[1][i]) + (v[2][i] + v[3][i]);
    store(dx + at.small, v[0], at.count, at.whole);
}

KERNEL(256) upsample2_float(const float* __restrict__ x, float* __restrict__ y, long pixels, int W,
                            int C) {
    spread(x, y, pixels, W, C);
}
KERNEL(256) upsample2_bf16(const bf16* __restrict__ x, bf16* __restrict__ y, long pixels, int W,
                           int C) {
    spread(x, y, pixels, W, C);
}
KERNEL(256) upsample2_backward_float(const float* __restrict__ dy, float* __restrict__ dx,
                                     long pixels, int W, int C) {
    gather(dy, dx, pixels, W, C);
}
KERNEL(256) upsample2_backward_bf16(const bf16* __restrict__ dy, bf16* __restrict__ dx, long pixels,
                                    int W, int C) {
    gather(dy, dx, pixels, W, C);
}


// out (tiles, N, C): Σ y over a tile's pixels
template <class T>
DEVICE void sum_tile(const T* y, float* out, int pixels, int N, int C, int each, int tiles) {
    Share<T> share(blockIdx.x, pixels, C, each, tiles, y);
    float sums[1][LANES<T>] = {};
    for (int p = share.pixel; p < share.end; p += 4 * blockDim.y) {
        float here[4][LANES<T>];                          // zeros beyond the last pixel
        share.load(here, y, p);
        #pragma unroll
        for (int v = 0; v < LANES<T>; v++)
            sums[0][v] += (here[0][v] + here[1][v]) + (here[2][v] + here[3][v]);
    }
    float* row = out + (static_cast<long>(share.tile) * N + share.n) * C;
    sum_down(share, sums, [&](int c, const float (&sum)[1]) { row[c] = sum[0]; });
}

KERNEL(256) sums_float(const float* __restrict__ y, float* out, int pixels, int N, int C, int each,
                       int tiles) {
    sum_tile(y, out, pixels, N, C, each, tiles);
}
KERNEL(256) sums_bf16(const bf16* __restrict__ y, float* out, int pixels, int N, int C, int each,
                      int tiles) {
    sum_tile(y, out, pixels, N, C, each, tiles);
}
