// Rows of weights in AVX2 registers; each file has its own copy.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "weights/kernels/vector/rows.hpp"

namespace orbitsplit::weights {

namespace {

constexpr std::size_t half_group = group / 2;

inline __m128 quiet(__m128 x) {
    return _mm_blendv_ps(_mm_set1_ps(__builtin_nanf("")), x, _mm_cmpord_ps(x, x));
}

inline __m256 quiet(__m256 x) {
    return _mm256_blendv_ps(_mm256_set1_ps(__builtin_nanf("")), x, _mm256_cmp_ps(x, x, _CMP_ORD_Q));
}

inline bool is_finite(float value) { return __builtin_fabsf(value) < __builtin_inff(); }

inline __m128i load_16(const std::byte* bytes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

inline __m128i load_8(const std::byte* bytes) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
}

inline __m256i load_words(const std::int16_t* words) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
}

inline __m256 floats_of_bytes(const std::byte* bytes) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8(bytes)));
}

inline __m128 upper_plus_lower(__m256 sums) {
    return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

// The totals of the lanes of each of four registers.
inline __m128 totals(const __m256* sums) {
    const __m128 a = upper_plus_lower(sums[0]);
    const __m128 b = upper_plus_lower(sums[1]);
    const __m128 c = upper_plus_lower(sums[2]);
    const __m128 d = upper_plus_lower(sums[3]);
    const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

}  // namespace

}  // namespace orbitsplit::weights
