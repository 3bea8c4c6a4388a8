// Two rows of weights side by side, one in each half of a register.
#include "weights/kernels/avx2/formats.hpp"

namespace orbitsplit::weights {

namespace {

constexpr __mmask16 upper_half = 0xFF00;

inline __m512i side_by_side(__m256i lower, __m256i upper) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
}

inline __m512i in_both_halves(const std::int16_t* words) { return _mm512_broadcast_i64x4(load_words(words)); }

inline __m512 in_halves(float lower, float upper) {
    return _mm512_mask_broadcastss_ps(_mm512_set1_ps(lower), upper_half, _mm_set_ss(upper));
}

inline __m256 upper_of(__m512 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }

// The scales of eight groups of a row of weights times those of `Rows` rows of x.
template <class Format, std::size_t Rows>
inline void store_scales(const std::byte* row, std::size_t groups, std::size_t g, Inputs x, float* scales) {
    const __m256 of_weights = Format::scales(row, groups, g);
    for (std::size_t r = 0; r < Rows; ++r)
        _mm256_store_ps(scales + r * lanes,
                        _mm256_mul_ps(of_weights, _mm256_loadu_ps(x.scales + g * Rows + r * lanes)));
}

// The sums over groups of two rows of weights, `step` bytes apart, and `Rows` rows of x.
// Loops over rows are unrolled, so that their sums stay in registers also at -O2.
template <class Format, std::size_t Rows>
inline void sum_rows(const std::byte* row, std::size_t step, std::size_t groups, Inputs x, __m256* first,
                     __m256* second) {
    __m512 in_lanes[Rows];
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) in_lanes[r] = _mm512_setzero_ps();
    const std::byte* codes = Format::codes(row, groups);
    const std::int16_t* words = x.codes;
    for (std::size_t g = 0; g < groups; g += lanes) {
        alignas(32) float lower[Rows * lanes];
        alignas(32) float upper[Rows * lanes];
        store_scales<Format, Rows>(row, groups, g, x, lower);
        store_scales<Format, Rows>(row + step, groups, g, x, upper);
        const std::size_t count = groups - g < lanes ? groups - g : lanes;
        for (std::size_t i = 0; i < count; ++i, codes += Format::code_step, words += group * Rows) {
            _mm_prefetch(reinterpret_cast<const char*>(codes + 2 * step), _MM_HINT_T0);
            const Words a = Format::expand(codes);
            const Words b = Format::expand(codes + step);
            const __m512i q_first = side_by_side(a.first, b.first);
            const __m512i q_second = side_by_side(a.second, b.second);
#pragma GCC unroll 8
            for (std::size_t r = 0; r < Rows; ++r) {
                const std::int16_t* of_x = words + r * group;
                const __m512i d =
                    _mm512_add_epi32(_mm512_madd_epi16(q_first, in_both_halves(of_x)),
                                     _mm512_madd_epi16(q_second, in_both_halves(of_x + half_group)));
                const __m512 scale = in_halves(lower[r * lanes + i], upper[r * lanes + i]);
                in_lanes[r] = _mm512_add_ps(in_lanes[r], _mm512_mul_ps(scale, _mm512_cvtepi32_ps(d)));
            }
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) {
        first[r] = _mm512_castps512_ps256(in_lanes[r]);
        second[r] = upper_of(in_lanes[r]);
    }
}

// Calls store(n, sums) for each row of weights; the last one of an odd number is computed twice.
template <class Format, std::size_t Rows, class Store>
inline void by_pairs(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x,
                     Store store) {
    __m256 first[rounded_up(Rows)] = {};
    __m256 second[rounded_up(Rows)] = {};
    for (std::size_t n = 0; n < outputs; n += 2) {
        const std::size_t step = n + 1 < outputs ? Format::row_bytes(groups) : 0;
        sum_rows<Format, Rows>(weights + n * Format::row_bytes(groups), step, groups, x, first, second);
        store(n, first);
        if (step != 0) store(n + 1, second);
    }
}

template <std::size_t Rows>
struct MultiplyInt8 {
    static void run(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                    std::size_t stride) {
        by_pairs<Int8, Rows>(weights, outputs, groups, x, [&](std::size_t n, const __m256* sums) {
            store_int8<Rows>(sums, y + n, stride);
        });
    }
};

template <class Format, std::size_t Rows>
struct MultiplyWithMinima {
    static void run(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                    std::size_t stride) {
        by_pairs<Format, Rows>(weights, outputs, groups, x, [&](std::size_t n, const __m256* sums) {
            store_with_minima<Rows>(weights + n * Format::row_bytes(groups), groups, x, sums, y + n, stride);
        });
    }
};

template <std::size_t Rows>
using MultiplyInt4 = MultiplyWithMinima<Int4, Rows>;
template <std::size_t Rows>
using MultiplyInt5 = MultiplyWithMinima<Int5, Rows>;

}  // namespace

constinit const Products avx512::products = {
    {by_rows<MultiplyInt8>, by_rows<MultiplyInt4>, by_rows<MultiplyInt5>}};

}  // namespace orbitsplit::weights
