// Sixteen elements of an activation as float32 lanes, by dtype; each AVX-512 file has its own copy.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace orbitsplit::kernels {

namespace {

constexpr std::size_t lanes = 16;

__mmask16 first_lanes(std::size_t count) { return static_cast<__mmask16>((1U << count) - 1); }

// Conversion to float32 is exact. `clamp` limits to the largest finite value of the dtype; `store` rounds to nearest,
// ties to even, and expects finite values to be within the range.
struct Float32 {
    static constexpr std::size_t bytes = 4;
    static __m512 load(const std::byte* in) { return _mm512_loadu_ps(in); }
    static __m512 load(const std::byte* in, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, in); }
    static __m512 clamp(__m512 x) {
        const __m512 largest = _mm512_set1_ps(0x1.FFFFFEp127F);
        return _mm512_max_ps(_mm512_min_ps(x, largest), _mm512_sub_ps(_mm512_setzero_ps(), largest));
    }
    static void store(std::byte* out, __m512 x) { _mm512_storeu_ps(out, x); }
    static void store(std::byte* out, __mmask16 mask, __m512 x) { _mm512_mask_storeu_ps(out, mask, x); }
};

struct Float16 {
    static constexpr std::size_t bytes = 2;
    static __m512 load(const std::byte* in) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
    }
    static __m512 load(const std::byte* in, __mmask16 mask) {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, in));
    }
    static __m512 clamp(__m512 x) {
        const __m512 largest = _mm512_set1_ps(65504.0F);
        return _mm512_max_ps(_mm512_min_ps(x, largest), _mm512_sub_ps(_mm512_setzero_ps(), largest));
    }
    static __m256i round(__m512 x) {
        return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    static void store(std::byte* out, __m512 x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), round(x));
    }
    static void store(std::byte* out, __mmask16 mask, __m512 x) {
        _mm256_mask_storeu_epi16(out, mask, round(x));
    }
};

struct BFloat16 {
    static constexpr std::size_t bytes = 2;
    static __m512 widen(__m256i x) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    }
    static __m512 load(const std::byte* in) {
        return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
    }
    static __m512 load(const std::byte* in, __mmask16 mask) {
        return widen(_mm256_maskz_loadu_epi16(mask, in));
    }
    static __m512 clamp(__m512 x) {
        const __m512 largest = _mm512_set1_ps(0x1.FEp127F);
        return _mm512_max_ps(_mm512_min_ps(x, largest), _mm512_sub_ps(_mm512_setzero_ps(), largest));
    }
    // vcvtneps2bf16 would flush denormal numbers. A NaN becomes a quiet NaN of the same sign.
    static __m256i round(__m512 x) {
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i raised = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
        const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
        const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(raised, is_nan, quiet), 16));
    }
    static void store(std::byte* out, __m512 x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), round(x));
    }
    static void store(std::byte* out, __mmask16 mask, __m512 x) {
        _mm256_mask_storeu_epi16(out, mask, round(x));
    }
};

}  // namespace

}  // namespace orbitsplit::kernels
