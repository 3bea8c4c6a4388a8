// Eight elements of an activation as float32 lanes, by dtype; each AVX2 file has its own copy.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace orbitsplit::kernels {

namespace {

inline __m256 magnitude(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), x); }

inline __m256 clamp_to(__m256 x, float largest) {
    return _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(largest)), _mm256_set1_ps(-largest));
}

// Infinity and NaN are kept.
inline __m256 clamp_finite_to(__m256 x, float largest) {
    const __m256 is_finite = _mm256_cmp_ps(magnitude(x), _mm256_set1_ps(__builtin_inff()), _CMP_LT_OQ);
    return _mm256_blendv_ps(x, clamp_to(x, largest), is_finite);
}

// Conversion to float32 is exact. `clamp` limits to the largest finite value of the dtype; `store` rounds to nearest,
// ties to even, and expects finite values to be within the range.
struct Float32 {
    static constexpr std::size_t lanes = 8;
    static constexpr std::size_t bytes = 4;
    static __m256 load(const std::byte* in) { return _mm256_loadu_ps(reinterpret_cast<const float*>(in)); }
    static __m256 clamp(__m256 x) { return clamp_to(x, 0x1.FFFFFEp127F); }
    static __m256 clamp_finite(__m256 x) { return x; }
    static void store(std::byte* out, __m256 x) { _mm256_storeu_ps(reinterpret_cast<float*>(out), x); }
};

struct Float16 {
    static constexpr std::size_t lanes = 8;
    static constexpr std::size_t bytes = 2;
    static constexpr float largest = 65504.0F;
    static __m256 load(const std::byte* in) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
    }
    static __m256 clamp(__m256 x) { return clamp_to(x, largest); }
    static __m256 clamp_finite(__m256 x) { return clamp_finite_to(x, largest); }
    static void store(std::byte* out, __m256 x) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
};

struct BFloat16 {
    static constexpr std::size_t lanes = 8;
    static constexpr std::size_t bytes = 2;
    static constexpr float largest = 0x1.FEp127F;
    static __m256 load(const std::byte* in) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    static __m256 clamp(__m256 x) { return clamp_to(x, largest); }
    static __m256 clamp_finite(__m256 x) { return clamp_finite_to(x, largest); }
    // A NaN becomes a quiet NaN of the same sign.
    static void store(std::byte* out, __m256 x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i raised = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(raised, quiet, is_nan), 16);
        const __m256i pairs = _mm256_packus_epi32(high, high);
        const __m128i words =
            _mm_unpacklo_epi64(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), words);
    }
};

}  // namespace

}  // namespace orbitsplit::kernels
