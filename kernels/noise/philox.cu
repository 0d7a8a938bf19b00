// Normal noise of (seed, purpose, image, step): a thread makes the four numbers of one block. And
// what dropout keeps: a thread makes sixteen numbers of one block.
#include "vector.cuh"

using word = unsigned long long;                          // 64 bits

struct Words { word of[4]; };

// Philox4x64-10.  Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
DEVICE Words philox(Words counter, word key0, word key1) {
    word a = counter.of[0], b = counter.of[1], c = counter.of[2], d = counter.of[3];
    for (int round = 0; round < 10; round++) {
        word high_a = __umul64hi(a, 0xD2E7470EE14C6C93ull), low_a = a * 0xD2E7470EE14C6C93ull;
        word high_c = __umul64hi(c, 0xCA5A826395121157ull), low_c = c * 0xCA5A826395121157ull;
        a = high_c ^ b ^ key0;
        b = low_c;
        c = high_a ^ d ^ key1;
        d = low_a;
        key0 += 0x9E3779B97F4A7C15ull;                    // the golden ratio
        key1 += 0xBB67AE8584CAA73Bull;                    // √3 − 1
    }
    return {a, b, c, d};
}

// Two normal numbers of two words, which become uniform in (0, 1] and [0, 1).  Box & Muller 1958
DEVICE void box_muller(word first, word second, double& x, double& y) {
    constexpr double UNIT = 1.0 / 9007199254740992.0;     // 2⁻⁵³
    double u1 = static_cast<double>((first >> 11) + 1) * UNIT;
    double u2 = static_cast<double>(second >> 11) * UNIT;
    double r = sqrt(-2 * log(u1)), sine, cosine;
    sincospi(2 * u2, &sine, &cosine);                     // of 2π u2
    x = r * cosine;
    y = r * sine;
}

// out (N, size). Image n is images[n], or first + n where there are none.
template <class T>
DEVICE void normal(T* out, const word* images, word first, word seed, word purpose, word step,
                   long size, long blocks, int N) {
    long i = blockIdx.x * 256l + threadIdx.x, n = i / blocks, block = i % blocks;
    if (n >= N)
        return;
    word image = images ? images[n] : first + n;
    Words w = philox({static_cast<word>(block), image, step, 0}, seed, purpose);
    double z[4];
    box_muller(w.of[0], w.of[1], z[0], z[1]);
    box_muller(w.of[2], w.of[3], z[2], z[3]);
    for (int k = 0; k < 4; k++)
        if (4 * block + k < size)
            out[n * size + 4 * block + k] = z[k];
}

KERNEL(256) normal_float(float* out, const unsigned long long* images, unsigned long long first,
                         unsigned long long seed, unsigned long long purpose,
                         unsigned long long step, long size, long blocks, int N) {
    normal(out, images, first, seed, purpose, step, size, blocks, N);
}

KERNEL(256) normal_double(double* out, const unsigned long long* images, unsigned long long first,
                          unsigned long long seed, unsigned long long purpose,
                          unsigned long long step, long size, long blocks, int N) {
    normal(out, images, first, seed, purpose, step, size, blocks, N);
}

// The same of state[0], the seed, and state[1], the step
KERNEL(256) normal_of_state(float* out, const unsigned long long* images, unsigned long long first,
                            const unsigned long long* state, unsigned long long purpose, long size,
                            long blocks, int N) {
    normal(out, images, first, state[0], purpose, state[1], size, blocks, N);
}

// out (size): `kept`, or 0 where 16 bits of the seed's words are below `least`
template <class T>
DEVICE void keep(T* out, const word* seed, int least, float kept, long size) {
    long block = blockIdx.x * 256l + threadIdx.x, start = 16 * block;
    if (start >= size)
        return;
    Words w = philox({static_cast<word>(block), 0, 0, 0}, *seed, 0);
    for (int first = 0; first < 16; first += LANES<T>) {
        float y[LANES<T>];
        for (int i = 0; i < LANES<T>; i++) {
            int bits = w.of[(first + i) / 4] >> 16 * ((first + i) % 4) & 0xFFFF;
            y[i] = bits < least ? 0 : kept;
        }
        long left = size - start - first;
        int count = left < LANES<T> ? (left < 0 ? 0 : left) : LANES<T>;
        store(out + start + first, y, count, count == LANES<T>);
    }
}

KERNEL(256) keep_float(float* out, const unsigned long long* seed, int least, float kept,
                       long size) {
    keep(out, seed, least, kept, size);
}

KERNEL(256) keep_bf16(bf16* out, const unsigned long long* seed, int least, float kept, long size) {
    keep(out, seed, least, kept, size);
}
