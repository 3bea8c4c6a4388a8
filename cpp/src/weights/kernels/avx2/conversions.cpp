#include "weights/kernels/avx2/rows.hpp"

namespace orbitsplit::weights {

namespace {

// The largest number, in every lane, of lanes that are not negative.
inline __m256i largest_of(__m256i x) {
    x = _mm256_max_epi32(x, _mm256_permute2x128_si256(x, x, 1));
    x = _mm256_max_epi32(x, _mm256_shuffle_epi32(x, 0x4E));
    return _mm256_max_epi32(x, _mm256_shuffle_epi32(x, 0xB1));
}

inline std::int32_t sum_of(__m256i x) {
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xB1)));
}

void round_group(const float* x, std::int16_t* codes, float& scale_out, float& sum_out) {
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    __m256 values[4];
    __m256i largest = _mm256_setzero_si256();
    for (int k = 0; k < 4; ++k) {
        values[k] = _mm256_loadu_ps(x + 8 * k);
        largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(values[k]), magnitude));
    }
    const float top = _mm256_cvtss_f32(_mm256_castsi256_ps(largest_of(largest)));
    auto* out = reinterpret_cast<__m256i*>(codes);
    if (!is_finite(top)) {
        _mm256_storeu_si256(out, _mm256_setzero_si256());
        _mm256_storeu_si256(out + 1, _mm256_setzero_si256());
        scale_out = sum_out = __builtin_nanf("");
        return;
    }
    const float quotient = top / largest_code;
    const float scale = quotient < smallest_scale ? smallest_scale : quotient;
    const __m256 inverse = _mm256_set1_ps(1.0F / scale);
    __m256i sums = _mm256_setzero_si256();
    for (int k = 0; k < 2; ++k) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(values[2 * k], inverse));
        const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(values[2 * k + 1], inverse));
        sums = _mm256_add_epi32(sums, _mm256_add_epi32(a, b));
        _mm256_storeu_si256(out + k, _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8));
    }
    scale_out = scale;
    sum_out = scale * static_cast<float>(sum_of(sums));
}

void dequantise_int8(const std::byte* weights, std::size_t rows, std::size_t groups, float* out) {
    for (std::size_t g = 0; g < rows * groups; ++g, weights += int8_group_bytes, out += group) {
        const float scale = _cvtsh_ss(load<std::uint16_t>(weights));
        const __m256 scales = _mm256_set1_ps(scale);
        const bool is_usual = is_finite(scale);
        for (std::size_t i = 0; i < group; i += lanes) {
            const __m256 q = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8(weights + 2 + i)));
            const __m256 w = _mm256_mul_ps(scales, q);
            _mm256_storeu_ps(out + i, is_usual ? w : quiet(w));
        }
    }
}

// Codes of a group, one byte each.
struct Bytes {
    __m128i low;  // columns 0 to 15
    __m128i high;
};

inline Bytes expand_int4(const std::byte* codes) {
    const __m128i bytes = load_16(codes);
    return {_mm_and_si128(bytes, _mm_set1_epi8(15)),
            _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15))};
}

// 16 in the bytes whose bit is set.
inline __m128i fifth_bits(std::uint32_t bits) {
    const __m128i own = _mm_set1_epi64x(static_cast<long long>(0x8040201008040201));
    const __m128i first_and_second = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m128i all = _mm_shuffle_epi8(_mm_cvtsi32_si128(static_cast<int>(bits)), first_and_second);
    return _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(all, own), own), _mm_set1_epi8(16));
}

inline Bytes expand_int5(const std::byte* codes) {
    const Bytes lower = expand_int4(codes);
    const auto bits = load<std::uint32_t>(codes + int4_code_bytes);
    return {_mm_or_si128(lower.low, fifth_bits(bits)), _mm_or_si128(lower.high, fifth_bits(bits >> 16))};
}

template <Bytes (*Expand)(const std::byte*)>
void dequantise_group(const std::byte* codes, float scale, float minimum, float* out) {
    const auto [low, high] = Expand(codes);
    const __m128i q[4] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
    const bool is_usual = is_finite(scale) && is_finite(minimum);
    for (std::size_t k = 0; k < 4; ++k) {
        const __m256 code = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(q[k]));
        const __m256 w = _mm256_sub_ps(_mm256_mul_ps(_mm256_set1_ps(scale), code), _mm256_set1_ps(minimum));
        _mm256_storeu_ps(out + lanes * k, is_usual ? w : quiet(w));
    }
}

}  // namespace

constinit const Conversions avx2::conversions = {
    round_row<round_group>,
    {dequantise_int8, dequantise_with_minima<int4_code_bytes, dequantise_group<expand_int4>>,
     dequantise_with_minima<int5_code_bytes, dequantise_group<expand_int5>>}};

}  // namespace orbitsplit::weights
