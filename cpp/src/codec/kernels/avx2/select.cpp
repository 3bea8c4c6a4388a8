#include "codec/kernels/vector/select.hpp"

#include <immintrin.h>

namespace orbitsplit::kernels {

namespace {

struct KeyOctets {
    using Keys = __m256i;

    template <std::size_t bytes>
    static Keys load(const std::byte* in) {
        if constexpr (bytes == 4) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
        const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
        return _mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16);
    }
    static Keys load(const std::int32_t* from) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    }
    static void store(Keys keys, std::int32_t* to) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), keys);
    }

    static Keys magnitude(Keys x) { return _mm256_and_si256(x, _mm256_set1_epi32(0x7FFFFFFF)); }
    static Keys larger(Keys a, Keys b) { return _mm256_max_epi32(a, b); }
    static std::int32_t largest(Keys x) {
        __m128i half = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        half = _mm_max_epi32(half, _mm_unpackhi_epi64(half, half));
        return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 1)));
    }
    static Keys is_above(Keys x, std::int32_t limit) {
        return _mm256_cmpgt_epi32(x, _mm256_set1_epi32(limit));
    }
    static unsigned mask_of(Keys is) {
        return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(is)));
    }
    static Keys minus(Keys a, Keys b) { return _mm256_sub_epi32(a, b); }
    static std::int32_t sum(Keys x) {
        __m128i half = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        half = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
        return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 1)));
    }
    static unsigned count(unsigned mask) { return static_cast<unsigned>(__builtin_popcount(mask)); }

    static void append(Keys keys, unsigned mask, std::int32_t* out) {
        const auto* lanes = reinterpret_cast<const __m128i*>(octet_controls.lanes[mask]);
        store(_mm256_permutevar8x32_epi32(keys, _mm256_cvtepu8_epi32(_mm_loadl_epi64(lanes))), out);
    }

    static void store_upper(Keys keys, std::byte* out) {
        const __m256i upper = _mm256_srli_epi32(keys, 16);
        const __m128i words =
            _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), words);
    }

    // Ties to even.
    static void store_bf16(Keys keys, std::byte* out) {
        const __m256i size = _mm256_min_epi32(magnitude(keys), _mm256_set1_epi32(0x7F7F0000));
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(size, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(size, _mm256_set1_epi32(0x7FFF)), odd);
        const __m256i sign = _mm256_andnot_si256(_mm256_set1_epi32(0x7FFFFFFF), keys);
        store_upper(_mm256_or_si256(rounded, sign), out);
    }

    template <std::size_t bytes>
    static void place(const std::byte* values, unsigned mask, std::byte* out) {
        const __m128i here = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
        const auto* control = reinterpret_cast<const __m128i*>(octet_controls.expand_words[mask]);
        const __m128i words = _mm_shuffle_epi8(here, _mm_load_si128(control));
        if constexpr (bytes == 4)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                                _mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
        else
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out), words);
    }
};

}  // namespace

constinit const Select avx2::select = make_select<KeyOctets>();

}  // namespace orbitsplit::kernels
