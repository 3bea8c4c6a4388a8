// The kernels of all instruction sets, on vectors of eight floats that the compiler maps to registers of any width.
// All in an anonymous namespace, so that each file has its own copy.
//
// Operations are additions, multiplications, divisions and square roots in a fixed order; the build forbids a fused
// multiply-add. So the bits are the same on every processor.
#pragma once

#include <cmath>
#include <limits>

#include "decoder/kernels/kernels.hpp"

namespace orbitsplit::decoder {

namespace {

using Floats = float __attribute__((vector_size(lanes * sizeof(float))));
using Words = std::uint32_t __attribute__((vector_size(lanes * sizeof(float))));

// Vectors are passed by reference: by value they would be passed differently for each instruction set.
inline void load(const float* from, Floats& to) { __builtin_memcpy(&to, from, sizeof to); }
inline void store(const Floats& from, float* to) { __builtin_memcpy(to, &from, sizeof from); }

inline float total(const Floats& sums) {
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// x = exp(x) for x from -87 to 88; what is beyond counts as that, NaN stays NaN. After Cephes' expf: exp(x) = 2^n exp(r)
// with n the integer nearest to x log2(e), and a polynomial for exp(r).
inline void exponential(Floats& x) {
    constexpr float least = -87.0F;
    constexpr float most = 88.0F;
    constexpr float log2_e = 1.44269504088896341F;
    constexpr float ln2_upper = 0.693359375F;
    constexpr float ln2_lower = -2.12194440e-4F;
    constexpr float rounding_magic = 12582912.0F;  // its sum with n has n in the last bits
    x = x < least ? Floats{} + least : x;
    x = x > most ? Floats{} + most : x;
    const Floats shifted = x * log2_e + rounding_magic;
    const Floats n = shifted - rounding_magic;
    const Floats r = (x - n * ln2_upper) - n * ln2_lower;
    Floats p = r * 1.9875691500e-4F + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = (p * (r * r) + r) + 1.0F;
    Words bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23U) + (std::uint32_t{127} << 23U);
    Floats power;
    __builtin_memcpy(&power, &bits, sizeof power);
    x = p * power;
}

void normalise(const float* x, std::size_t count, const float* scale, float epsilon, float* out) {
    Floats squares{};
    Floats v;
    Floats s;
    for (std::size_t i = 0; i < count; i += lanes) {
        load(x + i, v);
        squares += v * v;
    }
    const float factor = 1.0F / std::sqrt(total(squares) / static_cast<float>(count) + epsilon);
    for (std::size_t i = 0; i < count; i += lanes) {
        load(x + i, v);
        load(scale + i, s);
        store((v * factor) * s, out + i);
    }
}

void rotate(float* x, std::size_t size, const float* cosines, const float* sines) {
    const std::size_t half = size / 2;
    Floats first, second, c, s;
    for (std::size_t i = 0; i < half; i += lanes) {
        load(x + i, first);
        load(x + half + i, second);
        load(cosines + i, c);
        load(sines + i, s);
        store(first * c - second * s, x + i);
        load(cosines + half + i, c);
        load(sines + half + i, s);
        store(second * c + first * s, x + half + i);
    }
}

// Sums that stay in registers beside what they are made of, and vectors of a head that are added up together, at least.
constexpr std::size_t most_sums = 8;
constexpr std::size_t narrow = 2;

// Heads at once. Where a vector is more than one register compilers keep some in memory, and more of them cost more than
// shared loads save.
#if defined(__AVX__)
constexpr std::size_t most_heads = most_sums / narrow;
#else
constexpr std::size_t most_heads = 1;
#endif

// How many tokens ahead of the one in use keys are fetched: caches of several sequences do not stay in the processor's, and
// its own prefetcher stops at each page. A cache line has 16 floats.
constexpr std::size_t tokens_ahead = 8;
constexpr std::size_t cache_line = 16;

// Scores of `Tokens` tokens for `Heads` queries side by side: they share what is loaded, and no sum waits for its last
// addition. Scores of one head are `room` floats behind those of the one before.
template <std::size_t Heads, std::size_t Tokens>
inline void score(const float* queries, std::size_t size, float scale, const float* keys, std::size_t stride,
                  float* scores, std::size_t room) {
    Floats sums[Heads * Tokens] = {};
    Floats q, k;
    for (std::size_t i = 0; i < size; i += lanes) {
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) {
            load(keys + t * stride + i, k);
            if (i % cache_line == 0) __builtin_prefetch(keys + (t + tokens_ahead) * stride + i);
#pragma GCC unroll 8
            for (std::size_t h = 0; h < Heads; ++h) {
                load(queries + h * size + i, q);
                sums[h * Tokens + t] += q * k;
            }
        }
    }
#pragma GCC unroll 8
    for (std::size_t h = 0; h < Heads; ++h)
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) scores[h * room + t] = total(sums[h * Tokens + t]) * scale;
}

// The largest score of the visible tokens; scores behind them are -infinity up to a multiple of lanes.
inline float largest_of(const float* scores, const Seen& seen) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    float largest = -infinity;
    if (seen.visible != nullptr) {
        for (std::size_t t = 0; t < seen.tokens; ++t)
            if (seen.visible[t] != 0 && scores[t] > largest) largest = scores[t];
        return largest;
    }
    Floats most = Floats{} - infinity;
    Floats p;
    for (std::size_t t = 0; t < seen.tokens; t += lanes) {
        load(scores + t, p);
        most = p > most ? p : most;
    }
    for (std::size_t j = 0; j < lanes; ++j)
        if (most[j] > largest) largest = most[j];
    return largest;
}

// Scores to weights that add up to 1; 0 for tokens that are not visible and for the padding.
void softmax(float* scores, const Seen& seen) {
    const auto is_hidden = [&](std::size_t t) {
        return t >= seen.tokens || (seen.visible != nullptr && seen.visible[t] == 0);
    };
    const std::size_t padded = (seen.tokens + lanes - 1) / lanes * lanes;
    for (std::size_t t = seen.tokens; t < padded; ++t) scores[t] = -std::numeric_limits<float>::infinity();
    const float largest = largest_of(scores, seen);
    Floats sums{};
    Floats p;
    for (std::size_t t = 0; t < padded; t += lanes) {
        load(scores + t, p);
        p -= largest;
        exponential(p);
        if (seen.visible != nullptr || t + lanes > seen.tokens)
            for (std::size_t j = 0; j < lanes; ++j)
                if (is_hidden(t + j)) p[j] = 0.0F;
        sums += p;
        store(p, scores + t);
    }
    const float sum = total(sums);
    const float factor = sum == 0.0F ? 0.0F : 1.0F / sum;
    for (std::size_t t = 0; t < padded; t += lanes) {
        load(scores + t, p);
        store(p * factor, scores + t);
    }
}

// Adds `tokens` tokens to `Count` vectors of the weighted sums of values of `Heads` heads, which are in registers
// meanwhile. Weights of one head are `room` floats behind those of the one before, sums `size`. Values that are `ahead`
// floats behind those in use are fetched meanwhile.
template <std::size_t Heads, std::size_t Count>
inline void add_values(const float* weights, std::size_t room, const float* values, std::size_t stride,
                       std::size_t tokens, std::size_t ahead, float* out, std::size_t size) {
    Floats sums[Heads * Count];
    Floats v;
#pragma GCC unroll 8
    for (std::size_t h = 0; h < Heads; ++h)
#pragma GCC unroll 8
        for (std::size_t i = 0; i < Count; ++i) load(out + h * size + i * lanes, sums[h * Count + i]);
    for (std::size_t t = 0; t < tokens; ++t, values += stride) {
        __builtin_prefetch(values + ahead);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < Count; ++i) {
            load(values + i * lanes, v);
#pragma GCC unroll 8
            for (std::size_t h = 0; h < Heads; ++h) sums[h * Count + i] += v * weights[h * room + t];
        }
    }
#pragma GCC unroll 8
    for (std::size_t h = 0; h < Heads; ++h)
#pragma GCC unroll 8
        for (std::size_t i = 0; i < Count; ++i) store(sums[h * Count + i], out + h * size + i * lanes);
}

// Tokens whose values are added before the next ones, so that they stay in the L1 cache while several heads use them.
constexpr std::size_t tokens_at_once = 16;

// `Heads` of the heads that attend() does.
template <std::size_t Heads>
void attend_heads(const float* queries, std::size_t size, float scale, const Seen& seen, float* scores,
                  std::size_t room, float* out) {
    constexpr std::size_t at_once = most_sums / Heads;
    std::size_t t = 0;
    for (; t + at_once <= seen.tokens; t += at_once)
        score<Heads, at_once>(queries, size, scale, seen.keys + t * seen.key_stride, seen.key_stride,
                              scores + t, room);
    for (; t < seen.tokens; ++t)
        score<Heads, 1>(queries, size, scale, seen.keys + t * seen.key_stride, seen.key_stride, scores + t,
                        room);
    for (std::size_t h = 0; h < Heads; ++h) softmax(scores + h * room, seen);
    for (std::size_t i = 0; i < Heads * size; i += lanes) store(Floats{}, out + i);
    const std::size_t step = Heads == 1 ? seen.tokens : tokens_at_once;
    for (t = 0; t < seen.tokens; t += step) {
        const std::size_t count = seen.tokens - t < step ? seen.tokens - t : step;
        const float* values = seen.values + t * seen.value_stride;
        std::size_t i = 0;
        for (; i + at_once * lanes <= size; i += at_once * lanes)
            add_values<Heads, at_once>(scores + t, room, values + i, seen.value_stride, count,
                                       step * seen.value_stride, out + i, size);
        for (; i < size; i += narrow * lanes)
            add_values<Heads, narrow>(scores + t, room, values + i, seen.value_stride, count,
                                      step * seen.value_stride, out + i, size);
    }
}

void attend(const float* queries, std::size_t heads, std::size_t size, float scale, const Seen& seen,
            float* scores, std::size_t room, float* out) {
    std::size_t h = 0;
    for (; h + most_heads <= heads; h += most_heads)
        attend_heads<most_heads>(queries + h * size, size, scale, seen, scores + h * room, room,
                                 out + h * size);
    if constexpr (most_heads > 2)
        for (; h + 2 <= heads; h += 2)
            attend_heads<2>(queries + h * size, size, scale, seen, scores + h * room, room, out + h * size);
    for (; h < heads; ++h)
        attend_heads<1>(queries + h * size, size, scale, seen, scores + h * room, room, out + h * size);
}

// gate = gate / (1 + exp(-z)) * up, where z is the gate itself or, for GELU, 2 sqrt(2 / pi) (gate + 0.044715 gate^3):
// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)).
template <bool IsGelu>
void activate(float* gate, const float* up, std::size_t count) {
    constexpr float twice_root = 1.5957691216F;
    constexpr float cubic = 0.044715F;
    Floats g, u;
    for (std::size_t i = 0; i < count; i += lanes) {
        load(gate + i, g);
        load(up + i, u);
        Floats power = -g;
        if constexpr (IsGelu) power = (power + power * (g * g) * cubic) * twice_root;
        exponential(power);
        store(g / (power + 1.0F) * u, gate + i);
    }
}

void add(float* x, const float* y, std::size_t count) {
    Floats a, b;
    for (std::size_t i = 0; i < count; i += lanes) {
        load(x + i, a);
        load(y + i, b);
        store(a + b, x + i);
    }
}

constexpr Kernels all_kernels = {normalise, rotate, attend, {activate<false>, activate<true>}, add};

}  // namespace

}  // namespace orbitsplit::decoder
