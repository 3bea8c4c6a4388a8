#include <immintrin.h>

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

constexpr std::size_t lanes = 16;
constexpr std::size_t tile = 64;  // channels whose codes fill a register

__mmask16 first_lanes(std::size_t count) {
    return static_cast<__mmask16>(count >= lanes ? 0xFFFF : (1U << count) - 1);
}

__mmask64 first_bytes(std::size_t count) { return count >= tile ? ~0ULL : (1ULL << count) - 1; }

// The lanes of quarter `q` of a tile with `count` channels.
__mmask16 quarter(std::size_t count, std::size_t q) {
    return first_lanes(count > q * lanes ? count - q * lanes : 0);
}

__m512 load_floats(const void* from, std::size_t at, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const char*>(from) + at * sizeof(float));
}

// The magnitude of one operand with the sign of the other.
__m512 with_sign(__m512 magnitude, __m512 sign) {
    const __m512i bit = _mm512_set1_epi32(static_cast<int>(0x80000000U));
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign), _mm512_castps_si512(magnitude), 0xCA));
}

__m512 load_shift(const ChannelScales& scales, std::size_t channel, __mmask16 mask) {
    return scales.shift != nullptr ? load_floats(scales.shift, channel, mask) : _mm512_setzero_ps();
}

// A tile during quantisation: its numbers, their magnitude in steps, and the lanes at or above the threshold.
struct Quantised {
    __m512 y[4];
    __m512 steps[4];
    __mmask16 is_kept[4];
};

// Four registers of numbers to one of bytes, in order. What does not fit saturates.
__m512i pack(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i mixed = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    return _mm512_permutexvar_epi32(in_order, mixed);
}

__m512i bf16_nearest(__m512 y) {
    const __m512 largest = _mm512_castsi512_ps(_mm512_set1_epi32(0x7F7F0000));
    const __m512 smallest = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(0xFF7F0000U)));
    const __m512i bits = _mm512_castps_si512(_mm512_max_ps(_mm512_min_ps(y, largest), smallest));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
}

// Marks escapes and appends their values; not_finite if one is NaN or infinite.
__attribute__((noinline)) std::size_t store_escapes(const Quantised& q, __m512i& codes, std::byte* values) {
    const __m512 limit = _mm512_set1_ps(128);
    __mmask64 marked = 0;
    std::size_t count = 0;
    for (int k = 0; k < 4; ++k) {
        const __mmask16 is_escape =
            _mm512_mask_cmp_ps_mask(q.is_kept[k], _mm512_abs_ps(q.steps[k]), limit, _CMP_NLT_UQ);
        const __m512 infinity = _mm512_castsi512_ps(_mm512_set1_epi32(0x7F800000));
        if (_mm512_mask_cmp_ps_mask(is_escape, _mm512_abs_ps(q.y[k]), infinity, _CMP_NLT_UQ) != 0)
            return not_finite;
        const __m512i packed = _mm512_maskz_compress_epi32(is_escape, bf16_nearest(q.y[k]));
        const auto here = static_cast<std::size_t>(__builtin_popcount(is_escape));
        _mm256_mask_storeu_epi16(values + 2 * count, first_lanes(here), _mm512_cvtepi32_epi16(packed));
        count += here;
        marked |= static_cast<__mmask64>(is_escape) << (16 * k);
    }
    codes = _mm512_mask_blend_epi8(marked, codes, _mm512_set1_epi8(escape_code));
    return count;
}

template <bool has_shift, bool has_threshold>
std::size_t quantise_row(const std::byte* in, std::size_t length, const ChannelScales& scales,
                         std::int8_t* codes, std::byte* values) {
    const __m512 rounding = _mm512_set1_ps(scales.rounding);
    std::size_t escapes = 0;
    for (std::size_t c = 0; c < length; c += tile) {
        const std::size_t here = length - c;
        Quantised q;
        __m512i numbers[4];
        for (std::size_t k = 0; k < 4; ++k) {
            const std::size_t at = c + k * lanes;
            const __mmask16 mask = quarter(here, k);
            q.y[k] = load_floats(in, at, mask);
            if constexpr (has_shift) q.y[k] = _mm512_sub_ps(q.y[k], load_floats(scales.shift, at, mask));
            // The sign goes along through product and sum: rounding to nearest is symmetric.
            q.steps[k] = _mm512_add_ps(_mm512_mul_ps(q.y[k], load_floats(scales.inverse_step, at, mask)),
                                       with_sign(rounding, q.y[k]));
            q.is_kept[k] = 0xFFFF;
            if constexpr (has_threshold)
                q.is_kept[k] = _mm512_cmp_ps_mask(_mm512_abs_ps(q.y[k]),
                                                  load_floats(scales.threshold, at, mask), _CMP_NLT_UQ);
            numbers[k] = _mm512_maskz_cvttps_epi32(q.is_kept[k], q.steps[k]);
        }
        __m512i packed = pack(numbers[0], numbers[1], numbers[2], numbers[3]);
        // Saturated: the largest code of each sign that bytes have; -127 and 127 themselves are looked at again.
        const __m512i size = _mm512_abs_epi8(packed);
        if (_mm512_cmpge_epu8_mask(size, _mm512_set1_epi8(127)) != 0) [[unlikely]] {
            const std::size_t found = store_escapes(q, packed, values + 2 * escapes);
            if (found == not_finite) return not_finite;
            escapes += found;
        }
        _mm512_mask_storeu_epi8(codes + c, first_bytes(here), packed);
    }
    return escapes;
}

std::size_t quantise(const std::byte* in, layout::Rows rows, const ChannelScales& scales, std::int8_t* codes,
                     std::byte* values) {
    const bool has_shift = scales.shift != nullptr;
    const bool has_threshold = scales.threshold != nullptr;
    const auto of_row = has_shift ? (has_threshold ? quantise_row<true, true> : quantise_row<true, false>)
                                  : (has_threshold ? quantise_row<false, true> : quantise_row<false, false>);
    std::size_t escapes = 0;
    for (std::size_t row = 0; row < rows.count; ++row) {
        const std::size_t found = of_row(in + row * rows.length * sizeof(float), rows.length, scales,
                                         codes + row * rows.length, values + 2 * escapes);
        if (found == not_finite) return not_finite;
        escapes += found;
    }
    return escapes;
}

__m512 clamp(__m512 x) {
    const __m512 largest = _mm512_castsi512_ps(_mm512_set1_epi32(0x7F7FFFFF));
    const __m512 smallest = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(0xFF7FFFFFU)));
    return _mm512_max_ps(_mm512_min_ps(x, largest), smallest);
}

// The numbers that escaped codes of a quarter stand for; false if they are missing or not finite.
bool load_escapes(__mmask16 is_escape, const std::byte*& values, std::size_t& left, __m512& y) {
    const auto needed = static_cast<std::size_t>(__builtin_popcount(is_escape));
    if (needed > left) return false;
    const __m512i halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(needed), values));
    const __m512i bits = _mm512_slli_epi32(_mm512_maskz_expand_epi32(is_escape, halves), 16);
    const __m512 infinity = _mm512_castsi512_ps(_mm512_set1_epi32(0x7F800000));
    values += 2 * needed;
    left -= needed;
    y = _mm512_mask_mov_ps(y, is_escape, _mm512_castsi512_ps(bits));
    return _mm512_mask_cmp_ps_mask(is_escape, _mm512_abs_ps(y), infinity, _CMP_NLT_UQ) == 0;
}

template <bool has_shift, bool has_shrink>
bool dequantise_row(const std::int8_t* codes, std::size_t length, const ChannelScales& scales,
                    const std::byte*& values, std::size_t& left, std::byte* out) {
    const __m512 shrink = _mm512_set1_ps(scales.shrink);
    for (std::size_t c = 0; c < length; c += tile) {
        const std::size_t here = length - c;
        const __m512i packed = _mm512_maskz_loadu_epi8(first_bytes(here), codes + c);
        const __mmask64 is_escape = _mm512_cmpeq_epi8_mask(packed, _mm512_set1_epi8(escape_code));
        const __mmask64 is_coded = has_shrink ? _mm512_test_epi8_mask(packed, packed) : 0;
        for (std::size_t k = 0; k < 4; ++k) {
            const std::size_t at = c + k * lanes;
            const __mmask16 mask = quarter(here, k);
            const __m128i bytes = _mm_maskz_loadu_epi8(mask, codes + at);
            const __m512 number = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
            __m512 y = number;
            if constexpr (has_shrink)
                y = _mm512_maskz_sub_ps(static_cast<__mmask16>(is_coded >> (16 * k)), number,
                                        with_sign(shrink, number));
            y = _mm512_mul_ps(y, load_floats(scales.step, at, mask));
            const auto escaped_here = static_cast<__mmask16>(is_escape >> (16 * k));
            if (is_escape != 0) [[unlikely]] {
                if (!load_escapes(escaped_here, values, left, y)) return false;
                // Codes alone stay in range by the limits on steps and shifts.
                y = clamp(_mm512_add_ps(y, load_shift(scales, at, mask)));
            } else if constexpr (has_shift) {
                y = _mm512_add_ps(y, load_floats(scales.shift, at, mask));
            }
            _mm512_mask_storeu_ps(out + at * sizeof(float), mask, y);
        }
    }
    return true;
}

std::size_t dequantise(const std::int8_t* codes, layout::Rows rows, const ChannelScales& scales,
                       const std::byte* values, std::size_t count, std::byte* out) {
    const bool has_shift = scales.shift != nullptr;
    const bool has_shrink = scales.shrink > 0;
    const auto of_row = has_shift ? (has_shrink ? dequantise_row<true, true> : dequantise_row<true, false>)
                                  : (has_shrink ? dequantise_row<false, true> : dequantise_row<false, false>);
    std::size_t left = count;
    for (std::size_t row = 0; row < rows.count; ++row)
        if (!of_row(codes + row * rows.length, rows.length, scales, values, left,
                    out + row * rows.length * sizeof(float)))
            return not_finite;
    return count - left;
}

// Sums and differences of `y` and its permutation `partner`; `is_second` are the lanes of differences.
__m512 butterfly(__m512 y, __m512 partner, __mmask16 is_second) {
    return _mm512_mask_sub_ps(_mm512_add_ps(y, partner), is_second, partner, y);
}

// The butterflies whose distance is within a register.
__m512 transform_lanes(__m512 y, std::size_t block) {
    if (block > 1) y = butterfly(y, _mm512_permute_ps(y, 0xB1), 0xAAAA);
    if (block > 2) y = butterfly(y, _mm512_permute_ps(y, 0x4E), 0xCCCC);
    if (block > 4) y = butterfly(y, _mm512_shuffle_f32x4(y, y, 0xB1), 0xF0F0);
    if (block > 8) y = butterfly(y, _mm512_shuffle_f32x4(y, y, 0x4E), 0xFF00);
    return y;
}

void hadamard(float* y, std::size_t count, std::size_t block, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (std::size_t i = 0; i < count; i += lanes) {
        const __mmask16 mask = first_lanes(count - i);
        const __m512 here = transform_lanes(_mm512_maskz_loadu_ps(mask, y + i), block);
        _mm512_mask_storeu_ps(y + i, mask, block > lanes ? here : _mm512_mul_ps(here, factor));
    }
    for (std::size_t distance = lanes; distance < block; distance *= 2) {
        const __m512 last = 2 * distance == block ? factor : _mm512_set1_ps(1);
        for (std::size_t start = 0; start < count; start += 2 * distance)
            for (std::size_t i = start; i < start + distance; i += lanes) {
                const __m512 a = _mm512_loadu_ps(y + i);
                const __m512 b = _mm512_loadu_ps(y + i + distance);
                _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_add_ps(a, b), last));
                _mm512_storeu_ps(y + i + distance, _mm512_mul_ps(_mm512_sub_ps(a, b), last));
            }
    }
}

// Transposes 64 x 64 bytes: pairs, quads and octets of rows are interleaved, eight rows at a time; then the octets of
// all rows are gathered for each column.
void interleave_octets(const __m512i (&rows)[8], __m512i (&octets)[8]) {
    __m512i pairs[8];
    __m512i quads[8];
    for (int k = 0; k < 4; ++k) {
        pairs[2 * k] = _mm512_unpacklo_epi8(rows[2 * k], rows[2 * k + 1]);
        pairs[2 * k + 1] = _mm512_unpackhi_epi8(rows[2 * k], rows[2 * k + 1]);
    }
    for (int k = 0; k < 2; ++k)
        for (int half = 0; half < 2; ++half) {
            quads[4 * k + 2 * half] = _mm512_unpacklo_epi16(pairs[4 * k + half], pairs[4 * k + 2 + half]);
            quads[4 * k + 2 * half + 1] = _mm512_unpackhi_epi16(pairs[4 * k + half], pairs[4 * k + 2 + half]);
        }
    for (int k = 0; k < 4; ++k) {
        octets[2 * k] = _mm512_unpacklo_epi32(quads[k], quads[4 + k]);
        octets[2 * k + 1] = _mm512_unpackhi_epi32(quads[k], quads[4 + k]);
    }
}

// Transposes 8 x 8 words of eight bytes.
void transpose_words(__m512i (&m)[8]) {
    __m512i pairs[8];
    __m512i quads[8];
    for (int k = 0; k < 4; ++k) {
        pairs[2 * k] = _mm512_unpacklo_epi64(m[2 * k], m[2 * k + 1]);
        pairs[2 * k + 1] = _mm512_unpackhi_epi64(m[2 * k], m[2 * k + 1]);
    }
    for (int k = 0; k < 2; ++k)
        for (int half = 0; half < 2; ++half) {
            quads[4 * k + half] = _mm512_shuffle_i64x2(pairs[4 * k + half], pairs[4 * k + 2 + half], 0x88);
            quads[4 * k + 2 + half] =
                _mm512_shuffle_i64x2(pairs[4 * k + half], pairs[4 * k + 2 + half], 0xDD);
        }
    for (int k = 0; k < 4; ++k) {
        m[k] = _mm512_shuffle_i64x2(quads[k], quads[4 + k], 0x88);
        m[4 + k] = _mm512_shuffle_i64x2(quads[k], quads[4 + k], 0xDD);
    }
}

// Transposes a tile of at most 64 x 64 bytes, with the strides of rows and of columns.
void transpose_tile(const std::int8_t* in, std::size_t stride, std::size_t rows, std::size_t columns,
                    std::int8_t* out, std::size_t out_stride) {
    __m512i octets[8][8];
    for (std::size_t eight = 0; eight < 8; ++eight) {
        __m512i here[8];
        for (std::size_t k = 0; k < 8; ++k) {
            const std::size_t row = 8 * eight + k;
            here[k] = row < rows ? _mm512_maskz_loadu_epi8(first_bytes(columns), in + row * stride)
                                 : _mm512_setzero_si512();
        }
        interleave_octets(here, octets[eight]);
    }
    for (std::size_t pair = 0; pair < 8; ++pair) {
        __m512i words[8];
        for (std::size_t eight = 0; eight < 8; ++eight) words[eight] = octets[eight][pair];
        transpose_words(words);
        // Of every sixteen columns these are the two at 2 * pair.
        for (std::size_t k = 0; k < 8; ++k) {
            const std::size_t column = 16 * (k / 2) + 2 * pair + k % 2;
            if (column < columns)
                _mm512_mask_storeu_epi8(out + column * out_stride, first_bytes(rows), words[k]);
        }
    }
}

void to_columns(const std::int8_t* in, layout::Rows rows, std::int8_t* out) {
    for (std::size_t c = 0; c < rows.length; c += tile)
        transpose_tile(in + c, rows.length, rows.count, rows.length - c < tile ? rows.length - c : tile,
                       out + c * rows.count, rows.count);
}

void to_rows(const std::int8_t* in, layout::Rows rows, std::int8_t* out) {
    for (std::size_t c = 0; c < rows.length; c += tile)
        transpose_tile(in + c * rows.count, rows.count, rows.length - c < tile ? rows.length - c : tile,
                       rows.count, out + c, rows.length);
}

// Rows of the matrix that are multiplied before the next panel: their 256 bytes in a panel stay in the L1 cache, and
// the pages fit the TLB.
constexpr std::size_t factor_rows = 64;
constexpr std::size_t tile_rows = 6;  // with four registers each, 24 of 32 registers are accumulators

// Adds `count` rows times the matrix's rows [first, last) to a panel of four registers of results, so that each
// number of the matrix is loaded once for all rows. GCC 12 keeps the sums in registers only if it is told to unroll
// the loops.
template <std::size_t count>
void multiply_panel(const float* x, std::size_t length, const float* matrix, std::size_t first,
                    std::size_t last, std::size_t j, float* y) {
    __m512 sums[count][4];
    const std::size_t left = length - j;
    const __mmask16 masks[4] = {quarter(left, 0), quarter(left, 1), quarter(left, 2), quarter(left, 3)};
#pragma GCC unroll 8
    for (std::size_t row = 0; row < count; ++row)
#pragma GCC unroll 4
        for (std::size_t k = 0; k < 4; ++k)
            sums[row][k] =
                first == 0 ? _mm512_setzero_ps() : load_floats(y, row * length + j + k * lanes, masks[k]);
    for (std::size_t i = first; i < last; ++i) {
        __m512 factors[4];
        for (std::size_t k = 0; k < 4; ++k)
            factors[k] = load_floats(matrix, i * length + j + k * lanes, masks[k]);
        for (std::size_t row = 0; row < count; ++row) {
            const __m512 number = _mm512_set1_ps(x[row * length + i]);
            for (std::size_t k = 0; k < 4; ++k)
                sums[row][k] = _mm512_add_ps(sums[row][k], _mm512_mul_ps(number, factors[k]));
        }
    }
#pragma GCC unroll 8
    for (std::size_t row = 0; row < count; ++row)
#pragma GCC unroll 4
        for (std::size_t k = 0; k < 4; ++k)
            _mm512_mask_storeu_ps(y + row * length + j + k * lanes, masks[k], sums[row][k]);
}

void multiply(const float* x, layout::Rows rows, const float* matrix, float* y) {
    const std::size_t length = rows.length;
    for (std::size_t first = 0; first < length; first += factor_rows) {
        const std::size_t last = length - first < factor_rows ? length : first + factor_rows;
        for (std::size_t j = 0; j < length; j += tile) {
            std::size_t row = 0;
            for (; row + tile_rows <= rows.count; row += tile_rows)
                multiply_panel<tile_rows>(x + row * length, length, matrix, first, last, j, y + row * length);
            for (; row + 2 <= rows.count; row += 2)
                multiply_panel<2>(x + row * length, length, matrix, first, last, j, y + row * length);
            if (row < rows.count)
                multiply_panel<1>(x + row * length, length, matrix, first, last, j, y + row * length);
        }
    }
}

}  // namespace

constinit const Channels avx512::channels = {quantise, dequantise, hadamard, to_columns, to_rows, multiply};

}  // namespace orbitsplit::kernels
