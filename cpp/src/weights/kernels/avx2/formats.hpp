// How products read a row of weights, and how their sums become results: what AVX2 and AVX-512 share.
#pragma once

#include "weights/kernels/avx2/rows.hpp"

namespace orbitsplit::weights {

namespace {

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
        const std::byte* first = row + g * int8_group_bytes;
        const std::size_t last = groups - 1 - g;
        if (last + 1 >= lanes)
            return floats_of(
                [&](std::size_t i) { return load<std::uint16_t>(first + i * int8_group_bytes); });
        return floats_of([&](std::size_t i) {
            return load<std::uint16_t>(first + (i < last ? i : last) * int8_group_bytes);
        });
    }
    // half(i) is the float16 of lane i.
    template <class Half>
    static __m256 floats_of(Half half) {
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

// Scales and minima are where int4 has them.
struct Int5 : Int4 {
    static std::size_t row_bytes(std::size_t groups) { return int5_row_bytes(groups); }
    static constexpr std::size_t code_step = int5_code_bytes;
    static Words expand(const std::byte* codes) {
        const Words lower = Int4::expand(codes);
        const auto bits = load<std::uint32_t>(codes + int4_code_bytes);
        return {_mm256_or_si256(lower.first, fifth_bits(bits)),
                _mm256_or_si256(lower.second, fifth_bits(bits >> 16))};
    }
    // 16 in the words whose bit is set.
    static __m256i fifth_bits(std::uint32_t bits) {
        const __m256i own = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192,
                                              16384, static_cast<std::int16_t>(0x8000));
        const __m256i all = _mm256_set1_epi16(static_cast<std::int16_t>(bits));
        return _mm256_and_si256(_mm256_cmpeq_epi16(_mm256_and_si256(all, own), own), _mm256_set1_epi16(16));
    }
};

// For int4 and int5: the sums of minima times sums of x.
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

// The results of one row of weights from rounded_up(Rows) registers of sums.
template <std::size_t Rows>
inline void store_int8(const __m256* sums, float* y, std::size_t stride) {
    alignas(16) float values[rounded_up(Rows)];
    for (std::size_t r = 0; r < Rows; r += at_once) _mm_store_ps(values + r, quiet(totals(sums + r)));
    for (std::size_t r = 0; r < Rows; ++r) y[r * stride] = values[r];
}

template <std::size_t Rows>
inline void store_with_minima(const std::byte* row, std::size_t groups, Inputs x, const __m256* sums,
                              float* y, std::size_t stride) {
    __m256 minima[rounded_up(Rows)] = {};
    sum_minima<Rows>(row, groups, x, minima);
    alignas(16) float values[rounded_up(Rows)];
    const __m128 scale = _mm_set1_ps(load<float>(row));
    const __m128 minimum = _mm_set1_ps(load<float>(row + 4));
    for (std::size_t r = 0; r < Rows; r += at_once) {
        const __m128 first = _mm_mul_ps(scale, totals(sums + r));
        const __m128 second = _mm_mul_ps(minimum, totals(minima + r));
        _mm_store_ps(values + r, quiet(_mm_sub_ps(first, second)));
    }
    for (std::size_t r = 0; r < Rows; ++r) y[r * stride] = values[r];
}

}  // namespace

}  // namespace orbitsplit::weights
