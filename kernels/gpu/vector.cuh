// Sixteen bytes at a time, the most that a thread loads or stores at once: 4 floats, or 8 bf16 that
// are computed with as floats.
//
//     float y[LANES<T>];
//     load(y, x + i, count, whole);  …  store(x + i, y, count, whole);
//
// takes `count` numbers; the others are read as 0. With whole = false it goes one by one: wherever
// fewer are left, or they begin at no multiple of 16 bytes.
#pragma once
#include "device.cuh"

template <class T>
constexpr int LANES = 16 / sizeof(T);

template <class T>
struct alignas(16) Vector { T at[LANES<T>]; };

DEVICE bool aligned(const void* p) { return reinterpret_cast<unsigned long long>(p) % 16 == 0; }

DEVICE float to_float(float x) { return x; }
DEVICE void round_to(float& y, float x) { y = x; }
DEVICE void round_to(bf16& y, float x) { y = to_bf16(x); }

template <class T>
DEVICE void load(float (&y)[LANES<T>], const T* x, int count, bool whole) {
    Vector<T> v;
    if (whole) {
        v = *reinterpret_cast<const Vector<T>*>(x);
    } else {
        #pragma unroll
        for (int i = 0; i < LANES<T>; i++)
            if (i < count)
                v.at[i] = x[i];
            else
                round_to(v.at[i], 0);
    }
    #pragma unroll
    for (int i = 0; i < LANES<T>; i++)
        y[i] = to_float(v.at[i]);
}

template <class T>
DEVICE void store(T* x, const float (&y)[LANES<T>], int count, bool whole) {
    Vector<T> v;
    #pragma unroll
    for (int i = 0; i < LANES<T>; i++)
        round_to(v.at[i], y[i]);
    if (whole) {
        *reinterpret_cast<Vector<T>*>(x) = v;
        return;
    }
    #pragma unroll
    for (int i = 0; i < LANES<T>; i++)
        if (i < count)
            x[i] = v.at[i];
}

// V floats, as many as a thread has numbers of another type
template <int V>
DEVICE void load_floats(float (&y)[V], const float* x, int count) {
    bool whole = count == V && aligned(x);
    #pragma unroll
    for (int i = 0; i < V; i += 4) {
        float four[4];
        load(four, x + i, count - i, whole);
        #pragma unroll
        for (int j = 0; j < 4; j++)
            y[i + j] = four[j];
    }
}

template <int V>
DEVICE void store_floats(float* x, const float (&y)[V], int count) {
    bool whole = count == V && aligned(x);
    #pragma unroll
    for (int i = 0; i < V; i += 4) {
        float four[4] = {y[i], y[i + 1], y[i + 2], y[i + 3]};
        store(x + i, four, count - i, whole);
    }
}
