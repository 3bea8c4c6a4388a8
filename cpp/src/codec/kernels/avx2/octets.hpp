// What vectors of the compiler do not offer for eight lanes of 16 bits; each AVX2 file has its own copy.
#pragma once

#include <immintrin.h>

#include "codec/kernels/vector/octets.hpp"

namespace orbitsplit::kernels {

namespace {

struct Octets {
    static __m128i bits_of(Words words) { return reinterpret_cast<__m128i>(words); }
    static Words words_of(__m128i bits) { return reinterpret_cast<Words>(bits); }

    static Words multiply_high(Words a, Words b) { return words_of(_mm_mulhi_epu16(bits_of(a), bits_of(b))); }

    // A bit for each word that is all ones instead of zero.
    static unsigned mask_of(Words words) {
        return static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(bits_of(words), _mm_setzero_si128())));
    }

    static bool is_zero(Words words) { return _mm_testz_si128(bits_of(words), bits_of(words)) != 0; }

    static unsigned count(unsigned mask) { return static_cast<unsigned>(__builtin_popcount(mask)); }

    static Words expand(const std::uint8_t* bytes, unsigned mask) {
        const __m128i here = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
        const auto* control = reinterpret_cast<const __m128i*>(octet_controls.expand[mask]);
        return words_of(_mm_shuffle_epi8(here, _mm_load_si128(control)));
    }

    static void compress_before(std::uint8_t* end, Words words, unsigned mask) {
        const auto* control = reinterpret_cast<const __m128i*>(octet_controls.compress[mask]);
        const __m128i chosen = _mm_shuffle_epi8(bits_of(words), _mm_loadl_epi64(control));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(end - octet), chosen);
    }

    static void store_high_bytes(Words words, std::uint8_t* out) {
        const __m128i odd = _mm_set1_epi64x(0x0F0D0B0907050301);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(bits_of(words), odd));
    }

    // Eight entries of 32 bits, whose addresses `at` gives, as their lower and their upper halves. Single loads are
    // faster than the gathers of most processors.
    template <class At>
    static void lookup(At at, Words& lower, Words& upper) {
        const auto pair = [&](std::size_t lane) {
            return _mm_unpacklo_epi16(_mm_loadu_si32(at(lane)), _mm_loadu_si32(at(lane + 1)));
        };
        const __m128i first = _mm_unpacklo_epi32(pair(0), pair(2));
        const __m128i second = _mm_unpacklo_epi32(pair(4), pair(6));
        lower = words_of(_mm_unpacklo_epi64(first, second));
        upper = words_of(_mm_unpackhi_epi64(first, second));
    }
};

}  // namespace

}  // namespace orbitsplit::kernels
