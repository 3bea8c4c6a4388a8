#include <immintrin.h>

#include "weights/kernels/kernels.hpp"

namespace orbitsplit::weights {

namespace {

constexpr std::size_t half_group = group / 2;

// How far ahead of the codes in use the next ones are fetched: the processor's own prefetcher stops at each page.
constexpr std::size_t ahead_bytes = 1024;

inline __m128 quiet(__m128 x) {
    return _mm_blendv_ps(_mm_set1_ps(__builtin_nanf("")), x, _mm_cmpord_ps(x, x));
}

inline __m256 quiet(__m256 x) {
    return _mm256_blendv_ps(_mm256_set1_ps(__builtin_nanf("")), x, _mm256_cmp_ps(x, x, _CMP_ORD_Q));
}

inline bool is_finite(float value) { return __builtin_fabsf(value) < __builtin_inff(); }

template <class T>
inline T load(const std::byte* bytes) {
    T value;
    __builtin_memcpy(&value, bytes, sizeof value);
    return value;
}

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

void round(const float* x, std::size_t groups, std::size_t row, Inputs out) {
    for (std::size_t g = 0; g < padded(groups); ++g) {
        const std::size_t at = scale_at(g, row, out.rows);
        if (g < groups)
            round_group(x + g * group, out.codes + code_at(g, row, out.rows), out.scales[at], out.sums[at]);
        else
            out.scales[at] = out.sums[at] = 0.0F;
    }
}

struct Words {
    __m256i first;  // columns 0 to 15 of a group
    __m256i second;
};

// Where the numbers of a row of weights are, by format. `scales` has those of groups g to g + 7 and anything
// beyond the row, which is not used.
struct Int8 {
    static std::size_t row_bytes(std::size_t groups) { return int8_row_bytes(groups); }
    static const std::byte* codes(const std::byte* row, std::size_t) { return row + 2; }
    static constexpr std::size_t code_step = int8_group_bytes;
    static Words expand(const std::byte* codes) {
        return {_mm256_cvtepi8_epi16(load_16(codes)), _mm256_cvtepi8_epi16(load_16(codes + half_group))};
    }
    static __m256 scales(const std::byte* row, std::size_t groups, std::size_t g) {
        const auto half = [&](std::size_t i) {
            const std::size_t used = g + i < groups ? g + i : groups - 1;
            return load<std::uint16_t>(row + used * int8_group_bytes);
        };
        __m128i halves = _mm_cvtsi32_si128(half(0));
        halves = _mm_insert_epi16(halves, half(1), 1);
        halves = _mm_insert_epi16(halves, half(2), 2);
        halves = _mm_insert_epi16(halves, half(3), 3);
        halves = _mm_insert_epi16(halves, half(4), 4);
        halves = _mm_insert_epi16(halves, half(5), 5);
        halves = _mm_insert_epi16(halves, half(6), 6);
        return _mm256_cvtph_ps(_mm_insert_epi16(halves, half(7), 7));
    }
};

struct Int4 {
    static std::size_t row_bytes(std::size_t groups) { return int4_row_bytes(groups); }
    static const std::byte* codes(const std::byte* row, std::size_t groups) {
        return row + int4_codes_at(groups);
    }
    static constexpr std::size_t code_step = int4_code_bytes;
    static Words expand(const std::byte* codes) {
        const __m256i both = _mm256_cvtepu8_epi16(load_16(codes));
        return {_mm256_and_si256(both, _mm256_set1_epi16(15)), _mm256_srli_epi16(both, 4)};
    }
    // Reads into the minima and codes that follow in the row.
    static __m256 scales(const std::byte* row, std::size_t, std::size_t g) {
        return floats_of_bytes(row + int4_scales_at + g);
    }
};

// The sums over groups of a row of weights and `Rows` rows of x.
template <class Format, std::size_t Rows>
inline void sum_row(const std::byte* row, std::size_t groups, Inputs x, __m256* sums) {
    __m256 in_lanes[Rows];
    for (std::size_t r = 0; r < Rows; ++r) in_lanes[r] = _mm256_setzero_ps();
    const std::byte* codes = Format::codes(row, groups);
    const std::int16_t* words = x.codes;
    for (std::size_t g = 0; g < groups; g += lanes) {
        alignas(32) float scales[Rows * lanes];
        const __m256 of_weights = Format::scales(row, groups, g);
        for (std::size_t r = 0; r < Rows; ++r)
            _mm256_store_ps(scales + r * lanes,
                            _mm256_mul_ps(of_weights, _mm256_loadu_ps(x.scales + g * Rows + r * lanes)));
        const std::size_t count = groups - g < lanes ? groups - g : lanes;
        for (std::size_t i = 0; i < count; ++i, codes += Format::code_step, words += group * Rows) {
            _mm_prefetch(reinterpret_cast<const char*>(codes + ahead_bytes), _MM_HINT_T0);
            const Words q = Format::expand(codes);
            for (std::size_t r = 0; r < Rows; ++r) {
                const std::int16_t* of_x = words + r * group;
                const __m256i d =
                    _mm256_add_epi32(_mm256_madd_epi16(q.first, load_words(of_x)),
                                     _mm256_madd_epi16(q.second, load_words(of_x + half_group)));
                const __m256 scale = _mm256_broadcast_ss(scales + r * lanes + i);
                in_lanes[r] = _mm256_add_ps(in_lanes[r], _mm256_mul_ps(scale, _mm256_cvtepi32_ps(d)));
            }
        }
    }
    for (std::size_t r = 0; r < Rows; ++r) sums[r] = in_lanes[r];
}

// For int4: the sums of minima times sums of x.
template <std::size_t Rows>
inline void sum_minima(const std::byte* row, std::size_t groups, Inputs x, __m256* sums) {
    for (std::size_t r = 0; r < Rows; ++r) sums[r] = _mm256_setzero_ps();
    for (std::size_t g = 0; g < groups; g += lanes) {
        const __m256 minima = floats_of_bytes(row + int4_minima_at(groups) + g);
        for (std::size_t r = 0; r < Rows; ++r)
            sums[r] =
                _mm256_add_ps(sums[r], _mm256_mul_ps(minima, _mm256_loadu_ps(x.sums + g * Rows + r * lanes)));
    }
}

// Registers of sums that are added up at once.
constexpr std::size_t at_once = 4;
constexpr std::size_t rounded_up(std::size_t rows) { return (rows + at_once - 1) / at_once * at_once; }

template <std::size_t Rows>
inline void store_column(const float* values, float* y, std::size_t stride) {
    for (std::size_t r = 0; r < Rows; ++r) y[r * stride] = values[r];
}

template <std::size_t Rows>
void multiply_int8(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                   std::size_t stride) {
    __m256 sums[rounded_up(Rows)] = {};
    alignas(16) float values[rounded_up(Rows)];
    for (std::size_t n = 0; n < outputs; ++n, weights += int8_row_bytes(groups)) {
        sum_row<Int8, Rows>(weights, groups, x, sums);
        for (std::size_t r = 0; r < Rows; r += at_once) _mm_store_ps(values + r, quiet(totals(sums + r)));
        store_column<Rows>(values, y + n, stride);
    }
}

template <std::size_t Rows>
void multiply_int4(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                   std::size_t stride) {
    __m256 sums[rounded_up(Rows)] = {};
    __m256 minima[rounded_up(Rows)] = {};
    alignas(16) float values[rounded_up(Rows)];
    for (std::size_t n = 0; n < outputs; ++n, weights += int4_row_bytes(groups)) {
        sum_minima<Rows>(weights, groups, x, minima);
        sum_row<Int4, Rows>(weights, groups, x, sums);
        const __m128 scale = _mm_set1_ps(load<float>(weights));
        const __m128 minimum = _mm_set1_ps(load<float>(weights + 4));
        for (std::size_t r = 0; r < Rows; r += at_once) {
            const __m128 first = _mm_mul_ps(scale, totals(sums + r));
            const __m128 second = _mm_mul_ps(minimum, totals(minima + r));
            _mm_store_ps(values + r, quiet(_mm_sub_ps(first, second)));
        }
        store_column<Rows>(values, y + n, stride);
    }
}

using Multiply = void (*)(const std::byte*, std::size_t, std::size_t, Inputs, float*, std::size_t);

constexpr Multiply int8_by_rows[most_rows] = {multiply_int8<1>, multiply_int8<2>, multiply_int8<3>,
                                              multiply_int8<4>, multiply_int8<5>, multiply_int8<6>,
                                              multiply_int8<7>, multiply_int8<8>};
constexpr Multiply int4_by_rows[most_rows] = {multiply_int4<1>, multiply_int4<2>, multiply_int4<3>,
                                              multiply_int4<4>, multiply_int4<5>, multiply_int4<6>,
                                              multiply_int4<7>, multiply_int4<8>};

void multiply_8(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                std::size_t stride) {
    int8_by_rows[x.rows - 1](weights, outputs, groups, x, y, stride);
}

void multiply_4(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                std::size_t stride) {
    int4_by_rows[x.rows - 1](weights, outputs, groups, x, y, stride);
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

inline void dequantise_group(const std::byte* codes, float scale, float minimum, float* out) {
    const __m128i bytes = load_16(codes);
    const __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    const __m128i q[4] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
    const bool is_usual = is_finite(scale) && is_finite(minimum);
    for (std::size_t k = 0; k < 4; ++k) {
        const __m256 code = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(q[k]));
        const __m256 w = _mm256_sub_ps(_mm256_mul_ps(_mm256_set1_ps(scale), code), _mm256_set1_ps(minimum));
        _mm256_storeu_ps(out + lanes * k, is_usual ? w : quiet(w));
    }
}

void dequantise_int4(const std::byte* weights, std::size_t rows, std::size_t groups, float* out) {
    for (std::size_t row = 0; row < rows; ++row, weights += int4_row_bytes(groups)) {
        const float scale = load<float>(weights);
        const float minimum = load<float>(weights + 4);
        for (std::size_t g = 0; g < groups; ++g, out += group) {
            const auto s = static_cast<std::uint8_t>(weights[int4_scales_at + g]);
            const auto m = static_cast<std::uint8_t>(weights[int4_minima_at(groups) + g]);
            dequantise_group(Int4::codes(weights, groups) + g * int4_code_bytes,
                             scale * static_cast<float>(s), minimum * static_cast<float>(m), out);
        }
    }
}

}  // namespace

constinit const Products avx2::products = {
    round, {multiply_8, multiply_4}, {dequantise_int8, dequantise_int4}};

}  // namespace orbitsplit::weights
