// Images (N, pixels, width) cut into shares for passes over their pixels, and sums down columns.
//
// A block takes the `each` pixels of a tile and up to 32 vectors of channels side by side; so a
// warp reads whole lines of memory, however few channels belong together. Thread (x, y) has vector
// x, at pixels y, y + blockDim.y, …; what it knows of its channels stays in registers.  columns.py
#pragma once
#include "vector.cuh"

template <class T>
struct Share {
    int n, tile;                                          // the image, and which of its tiles
    int c, count;                                         // channels c … c + count − 1
    int pixel, end;                                       // every blockDim.y-th from the one on
    bool whole;                                           // its vectors are, wherever they lie
    int width;
    long start;                                           // where pixel 0 has its channel c

    // index: which tile of those of all images; arrays: what it will load from and store to
    template <class... Arrays>
    DEVICE Share(unsigned index, int pixels, int width, int each, int tiles, Arrays... arrays)
        : width(width) {
        constexpr int V = LANES<T>;
        n = index / tiles, tile = index % tiles;
        c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
        count = width - c < V ? width - c : V;
        whole = count == V && width % V == 0 && (aligned(arrays) && ...);
        pixel = tile * each + threadIdx.y;
        end = pixels - tile * each < each ? pixels : tile * each + each;
        if (count <= 0)
            count = end = 0;                              // beside the last channel
        start = static_cast<long>(n) * pixels * width + c;
    }

    DEVICE long at(int pixel) const { return start + static_cast<long>(pixel) * width; }

    // The i-th of its pixels from p on, and whether there is one
    DEVICE int pixel_of(int p, int i) const { return p + i * blockDim.y; }
    DEVICE bool has(int p, int i) const { return pixel_of(p, i) < end; }

    // K of its pixels from p on, zeros beyond the last: all are asked for before one is used
    template <int K>
    DEVICE void load(float (&y)[K][LANES<T>], const T* x, int p) const {
        #pragma unroll
        for (int i = 0; i < K; i++)
            ::load(y[i], x + at(pixel_of(p, i)), has(p, i) ? count : 0, has(p, i) && whole);
    }

    template <int K>
    DEVICE void store(T* x, const float (&y)[K][LANES<T>], int p) const {
        #pragma unroll
        for (int i = 0; i < K; i++)
            ::store(x + at(pixel_of(p, i)), y[i], has(p, i) ? count : 0, has(p, i) && whole);
    }
};

// K sums for each of V channels, of 256 threads. The length of a row keeps those that are read
// together in different banks.
template <int K, int V>
struct Columns { float of[K][V][256 + 32 / V]; };

// Add up what the threads of each column bring: put(c, K sums) for each channel c of the block
template <class T, int K, class Put>
DEVICE void sum_down(const Share<T>& share, const float (&mine)[K][LANES<T>], Put put) {
    constexpr int V = LANES<T>;
    auto& part = shared<Columns<K, V>>().of;
    int across = blockDim.x, down = blockDim.y, thread = threadIdx.y * across + threadIdx.x;
    #pragma unroll
    for (int k = 0; k < K; k++)
        #pragma unroll
        for (int v = 0; v < V; v++)
            part[k][v][thread] = mine[k][v];
    __syncthreads();
    int left = blockIdx.y * across * V;                   // its first channel
    for (int i = thread; i < across * V && left + i < share.width; i += across * down) {
        float sum[K] = {};
        for (int y = 0; y < down; y++)
            #pragma unroll
            for (int k = 0; k < K; k++)
                sum[k] += part[k][i % V][y * across + i / V];
        put(left + i, sum);
    }
}
