#include "weights/kernels/avx2/formats.hpp"

namespace orbitsplit::weights {

namespace {

// How far ahead of the codes in use the next ones are fetched: the processor's own prefetcher stops at each page.
constexpr std::size_t ahead_bytes = 1024;

// The sums over groups of a row of weights and `Rows` rows of x.
// Loops over rows are unrolled, so that their sums stay in registers also at -O2.
template <class Format, std::size_t Rows>
inline void sum_row(const std::byte* row, std::size_t groups, Inputs x, __m256* sums) {
    __m256 in_lanes[Rows];
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) in_lanes[r] = _mm256_setzero_ps();
    const std::byte* codes = Format::codes(row, groups);
    const std::int16_t* words = x.codes;
    for (std::size_t g = 0; g < groups; g += lanes) {
        alignas(32) float scales[Rows * lanes];
        const __m256 of_weights = Format::scales(row, groups, g);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < Rows; ++r)
            _mm256_store_ps(scales + r * lanes,
                            _mm256_mul_ps(of_weights, _mm256_loadu_ps(x.scales + g * Rows + r * lanes)));
        const std::size_t count = groups - g < lanes ? groups - g : lanes;
        for (std::size_t i = 0; i < count; ++i, codes += Format::code_step, words += group * Rows) {
            _mm_prefetch(reinterpret_cast<const char*>(codes + ahead_bytes), _MM_HINT_T0);
            const Words q = Format::expand(codes);
#pragma GCC unroll 8
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
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) sums[r] = in_lanes[r];
}

template <std::size_t Rows>
struct MultiplyInt8 {
    static void run(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                    std::size_t stride) {
        __m256 sums[rounded_up(Rows)] = {};
        for (std::size_t n = 0; n < outputs; ++n, weights += int8_row_bytes(groups)) {
            sum_row<Int8, Rows>(weights, groups, x, sums);
            store_int8<Rows>(sums, y + n, stride);
        }
    }
};

template <class Format, std::size_t Rows>
struct MultiplyWithMinima {
    static void run(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                    std::size_t stride) {
        __m256 sums[rounded_up(Rows)] = {};
        for (std::size_t n = 0; n < outputs; ++n, weights += Format::row_bytes(groups)) {
            sum_row<Format, Rows>(weights, groups, x, sums);
            store_with_minima<Rows>(weights, groups, x, sums, y + n, stride);
        }
    }
};

template <std::size_t Rows>
using MultiplyInt4 = MultiplyWithMinima<Int4, Rows>;
template <std::size_t Rows>
using MultiplyInt5 = MultiplyWithMinima<Int5, Rows>;

}  // namespace

constinit const Products avx2::products = {
    {by_rows<MultiplyInt8>, by_rows<MultiplyInt4>, by_rows<MultiplyInt5>}};

}  // namespace orbitsplit::weights
