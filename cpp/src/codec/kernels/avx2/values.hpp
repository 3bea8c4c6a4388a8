// 32 bfloat16 values: as two vectors, or as one of their exponents and one of their other bits; each AVX2 file has its
// own copy.
#pragma once

#include <immintrin.h>

#include "codec/kernels/vector/planes.hpp"

namespace orbitsplit::kernels {

namespace {

struct ValueBlocks {
    static constexpr std::size_t values = 32;

    struct Pair {
        __m256i first;
        __m256i second;
    };

    static __m256i load(const void* in) { return _mm256_loadu_si256(static_cast<const __m256i*>(in)); }
    static void store(void* out, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(out), x); }
    static Pair load_pair(const std::byte* in) { return {load(in), load(in + 32)}; }

    // Words to bytes, in order: packing works within 128-bit lanes.
    static __m256i pack(__m256i first, __m256i second) {
        return _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0xD8);
    }

    // A value is a sign, eight bits of exponent and seven of mantissa.
    static __m256i exponents_of(Pair in) {
        const auto of = [](__m256i x) { return _mm256_srli_epi16(_mm256_slli_epi16(x, 1), 8); };
        return pack(of(in.first), of(in.second));
    }

    static __m256i others_of(Pair in) {
        const auto of = [](__m256i x) {
            const __m256i sign = _mm256_slli_epi16(_mm256_srli_epi16(x, 15), 7);
            return _mm256_or_si256(_mm256_and_si256(x, _mm256_set1_epi16(0x7F)), sign);
        };
        return pack(of(in.first), of(in.second));
    }

    static void exponents(const std::byte* in, std::uint8_t* out) { store(out, exponents_of(load_pair(in))); }

    static void split(const std::byte* in, std::uint8_t* exponents, std::uint8_t* others) {
        const Pair both = load_pair(in);
        store(exponents, exponents_of(both));
        store(others, others_of(both));
    }

    // The high byte of a value is the sign and seven bits of the exponent, the low one the last bit and the mantissa.
    static void merge(const std::uint8_t* exponents, const std::uint8_t* others, std::byte* out) {
        const __m256i exponent = load(exponents);
        const __m256i other = load(others);
        const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
        const __m256i half = _mm256_andnot_si256(sign, _mm256_srli_epi16(exponent, 1));
        const __m256i last = _mm256_and_si256(sign, _mm256_slli_epi16(exponent, 7));
        const __m256i high = _mm256_or_si256(half, _mm256_and_si256(sign, other));
        const __m256i low = _mm256_or_si256(last, _mm256_andnot_si256(sign, other));
        const __m256i even = _mm256_unpacklo_epi8(low, high);
        const __m256i odd = _mm256_unpackhi_epi8(low, high);
        store(out, _mm256_permute2x128_si256(even, odd, 0x20));
        store(out + 32, _mm256_permute2x128_si256(even, odd, 0x31));
    }
};

}  // namespace

}  // namespace orbitsplit::kernels
