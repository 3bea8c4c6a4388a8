#include <immintrin.h>

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

constexpr std::size_t lanes = 16;

// A gap is the number of positions skipped: bytes of this value while it fits, then the remainder.
constexpr std::size_t gap_step = 255;

std::size_t bitmap_row_bytes(layout::Rows rows) { return (rows.length + 7) / 8; }

// Keys rank magnitudes in 31 bits, as in scalar/select.cpp.
constexpr std::uint32_t past_keys = 0x80000000;

__mmask16 first_lanes(std::size_t count) {
    return static_cast<__mmask16>(count >= lanes ? 0xFFFF : (1U << count) - 1);
}

__m512i set1(std::uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }

unsigned count_bits(__mmask16 mask) { return static_cast<unsigned>(_mm_popcnt_u32(mask)); }

// Elements as keys, and the elements of a mask compressed to 16 bits each. Neighbouring rows are similar: the
// threshold of a row is first sought within `reach` of that of the previous row, some 6 %.
struct Float32 {
    static constexpr std::size_t bytes = 4;
    static constexpr std::uint32_t infinite_key = 0x7F800000;
    static constexpr std::uint32_t reach = std::uint32_t{1} << 19;
    static __m512i keys(const std::byte* in, __mmask16 given) {
        return _mm512_and_si512(_mm512_maskz_loadu_epi32(given, in), set1(0x7FFFFFFF));
    }
    // The nearest finite bfloat16, ties to even.
    static __m256i kept(const std::byte* in, __mmask16 given, __mmask16 is_kept) {
        const __m512i bits = _mm512_maskz_compress_epi32(is_kept, _mm512_maskz_loadu_epi32(given, in));
        const __m512i size = _mm512_min_epu32(_mm512_and_si512(bits, set1(0x7FFFFFFF)), set1(0x7F7F0000));
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(size, 16), set1(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(size, set1(0x7FFF)), odd);
        const __m512i sign = _mm512_and_si512(bits, set1(0x80000000));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_or_si512(rounded, sign), 16));
    }
    static __m512i expand(__mmask16 is_kept, __m256i values) {
        return _mm512_maskz_expand_epi32(is_kept, _mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
    }
    // Into zeroed memory.
    static void store_one(std::byte* out, std::size_t i, const std::byte* value) {
        __builtin_memcpy(out + 4 * i + 2, value, 2);
    }
    static void store(std::byte* out, __mmask16 given, __m512i values) {
        _mm512_mask_storeu_epi32(out, given, values);
    }
};

template <std::uint32_t infinity, int mantissa_bits>
struct Bits16 {
    static constexpr std::size_t bytes = 2;
    static constexpr std::uint32_t infinite_key = infinity;
    static constexpr std::uint32_t reach = std::uint32_t{1} << (16 + mantissa_bits - 4);
    static __m512i keys(const std::byte* in, __mmask16 given) {
        const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(given, in));
        return _mm512_and_si512(_mm512_slli_epi32(bits, 16), set1(0x7FFFFFFF));
    }
    static __m256i kept(const std::byte* in, __mmask16 given, __mmask16 is_kept) {
        return _mm256_maskz_compress_epi16(is_kept, _mm256_maskz_loadu_epi16(given, in));
    }
    static __m256i expand(__mmask16 is_kept, __m256i values) {
        return _mm256_maskz_expand_epi16(is_kept, values);
    }
    static void store_one(std::byte* out, std::size_t i, const std::byte* value) {
        __builtin_memcpy(out + 2 * i, value, 2);
    }
    static void store(std::byte* out, __mmask16 given, __m256i values) {
        _mm256_mask_storeu_epi16(out, given, values);
    }
};

using Float16 = Bits16<0x7C000000, 10>;
using BFloat16 = Bits16<0x7F800000, 7>;

// The `missing`-th largest of `count` keys, which is in [low, high). `from_low` and `from_high` keys are at least as
// large as the ends of that range.
struct Search {
    std::uint32_t* keys;
    std::size_t count;
    std::size_t missing;
    std::uint32_t low;
    std::uint32_t high;
    std::size_t from_low;
    std::size_t from_high = 0;
};

__m512i load_keys(const Search& search, std::size_t i) {
    return _mm512_maskz_loadu_epi32(first_lanes(search.count - i), search.keys + i);
}

std::size_t count_from(const Search& search, std::uint32_t low) {
    const __m512i limit = set1(low);
    __m512i sum = _mm512_setzero_si512();
    std::size_t i = 0;
    for (; i + lanes <= search.count; i += lanes) {
        const __m512i keys = _mm512_loadu_si512(search.keys + i);
        sum = _mm512_mask_add_epi32(sum, _mm512_cmpge_epu32_mask(keys, limit), sum, set1(1));
    }
    const __mmask16 rest = first_lanes(search.count - i);
    const __mmask16 tail = _mm512_mask_cmpge_epu32_mask(rest, load_keys(search, i), limit);
    return static_cast<std::uint32_t>(_mm512_reduce_add_epi32(sum)) + count_bits(tail);
}

// Appends the chosen lanes to `count` others and returns the new count. Compressed in a register, because compressing
// to memory is microcoded. A full store may write beyond the chosen lanes, except at the tail.
std::size_t append(std::uint32_t* array, std::size_t count, __m512i keys, __mmask16 chosen, bool is_tail) {
    const __m512i packed = _mm512_maskz_compress_epi32(chosen, keys);
    const unsigned added = count_bits(chosen);
    if (is_tail)
        _mm512_mask_storeu_epi32(array + count, first_lanes(added), packed);
    else
        _mm512_storeu_si512(array + count, packed);
    return count + added;
}

// Drops the keys outside the range.
void narrow(Search& search) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < search.count; i += lanes) {
        const __m512i keys = load_keys(search, i);
        const __mmask16 from_low =
            _mm512_mask_cmpge_epu32_mask(first_lanes(search.count - i), keys, set1(search.low));
        const __mmask16 in_range = _mm512_mask_cmplt_epu32_mask(from_low, keys, set1(search.high));
        count = append(search.keys, count, keys, in_range, i + lanes > search.count);
    }
    search.missing -= search.from_high;
    search.count = search.from_low = count;
    search.from_high = 0;
}

// The keys above the threshold are kept, and of those equal to it the first `ties`.
struct Threshold {
    std::uint32_t key;
    std::size_t ties;
};

// For at most sixteen keys: tries each.
Threshold pick(const Search& search) {
    const __mmask16 given = first_lanes(search.count);
    const __m512i keys = load_keys(search, 0);
    for (std::size_t i = 0;; ++i) {
        const __m512i candidate = set1(search.keys[i]);
        const std::size_t above = count_bits(_mm512_mask_cmpgt_epu32_mask(given, keys, candidate));
        const std::size_t from = count_bits(_mm512_mask_cmpge_epu32_mask(given, keys, candidate));
        if (above < search.missing && search.missing <= from) return {search.keys[i], search.missing - above};
    }
}

// Bisects the range; modifies the keys.
Threshold find_threshold(Search search) {
    while (search.high - search.low > 1) {
        const std::size_t in_range = search.from_low - search.from_high;
        if (in_range <= lanes || 2 * in_range <= search.count) narrow(search);
        if (search.count <= lanes) return pick(search);
        const std::uint32_t middle = search.low + (search.high - search.low) / 2;
        const std::size_t from_middle = count_from(search, middle);
        if (from_middle >= search.missing) {
            search.low = middle;
            search.from_low = from_middle;
        } else {
            search.high = middle;
            search.from_high = from_middle;
        }
    }
    return {search.low, search.missing - search.from_high};
}

// The result of one pass over a row: the largest key, and how many keys are in a range and above it.
struct Survey {
    std::uint32_t largest;
    std::size_t in_range;
    std::size_t above_range;
};

template <class Element>
Survey survey(const std::byte* in, std::size_t length, std::uint32_t low, std::uint32_t high,
              std::uint32_t* keys_out, std::uint32_t* in_range) {
    __m512i largest = _mm512_setzero_si512();
    Survey found{0, 0, 0};
    for (std::size_t i = 0; i < length; i += lanes) {
        const __mmask16 given = first_lanes(length - i);
        const __m512i keys = Element::keys(in + i * Element::bytes, given);
        _mm512_mask_storeu_epi32(keys_out + i, given, keys);
        largest = _mm512_max_epu32(largest, keys);
        const __mmask16 from_low = _mm512_mask_cmpge_epu32_mask(given, keys, set1(low));
        const __mmask16 from_high = _mm512_mask_cmpge_epu32_mask(from_low, keys, set1(high));
        found.above_range += count_bits(from_high);
        found.in_range = append(in_range, found.in_range, keys, static_cast<__mmask16>(from_low & ~from_high),
                                i + lanes > length);
    }
    found.largest = static_cast<std::uint32_t>(_mm512_reduce_max_epu32(largest));
    return found;
}

// The lowest `ties` of the lanes in a mask, all if there are fewer.
__mmask16 lowest(__mmask16 mask, std::size_t ties) {
    return static_cast<__mmask16>(_pdep_u32(first_lanes(ties), mask));
}

// Writes the kept elements of a row: keys above the threshold, and of those equal to it the first `ties`.
template <class Element>
void write_kept(const std::byte* in, std::size_t length, Threshold threshold, std::byte* values,
                std::size_t room, std::byte* bitmap) {
    std::size_t written = 0;
    std::size_t ties = threshold.ties;
    for (std::size_t i = 0; i < length; i += lanes) {
        const __mmask16 given = first_lanes(length - i);
        const std::byte* here = in + i * Element::bytes;
        const __m512i keys = Element::keys(here, given);
        __mmask16 is_kept = _mm512_mask_cmpgt_epu32_mask(given, keys, set1(threshold.key));
        const __mmask16 is_level = _mm512_mask_cmpeq_epu32_mask(given, keys, set1(threshold.key));
        if (is_level != 0 && ties > 0) {
            const __mmask16 chosen = lowest(is_level, ties);
            is_kept |= chosen;
            ties -= count_bits(chosen);
        }
        __builtin_memcpy(bitmap + i / 8, &is_kept, length - i > 8 ? 2 : 1);
        const __m256i kept = Element::kept(here, given, is_kept);
        if (written + lanes <= room)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + 2 * written), kept);
        else
            _mm256_mask_storeu_epi16(values + 2 * written, first_lanes(count_bits(is_kept)), kept);
        written += count_bits(is_kept);
    }
}

template <class Element>
bool select_largest(const std::byte* in, layout::Rows rows, std::size_t kept, std::uint32_t* scratch,
                    std::byte* values, std::byte* bitmaps) {
    std::uint32_t low = past_keys;
    std::uint32_t high = past_keys;
    for (std::size_t row = 0; row < rows.count; ++row) {
        const std::byte* here = in + row * rows.length * Element::bytes;
        std::uint32_t* near = scratch + rows.length;
        const Survey found = survey<Element>(here, rows.length, low, high, scratch, near);
        if (found.largest >= Element::infinite_key) return false;
        const bool is_near = found.above_range < kept && kept <= found.above_range + found.in_range;
        const Search whole{scratch, rows.length, kept, 0, found.largest + 1, rows.length};
        const Search around{near, found.in_range, kept - found.above_range, low, high, found.in_range};
        const Threshold threshold = find_threshold(is_near ? around : whole);
        low = threshold.key > Element::reach ? threshold.key - Element::reach : 0;
        high = threshold.key + Element::reach;
        write_kept<Element>(here, rows.length, threshold, values + 2 * row * kept, (rows.count - row) * kept,
                            bitmaps + row * bitmap_row_bytes(rows));
    }
    return true;
}

// Up to 64 positions of a bitmap, starting at a byte; those beyond its end are not set.
std::uint64_t load_bits(const std::byte* bitmap, std::size_t bytes) {
    if (bytes < 8)
        return static_cast<std::uint64_t>(
            _mm_cvtsi128_si64(_mm_maskz_loadu_epi8(first_lanes(bytes), bitmap)));
    std::uint64_t bits;
    __builtin_memcpy(&bits, bitmap, sizeof bits);
    return bits;
}

std::size_t count_bits(std::uint64_t bits) { return static_cast<std::size_t>(_mm_popcnt_u64(bits)); }

bool keeps_exactly(const std::byte* bitmap, std::size_t length, std::size_t kept) {
    std::size_t count = 0;
    const std::size_t bytes = (length + 7) / 8;
    for (std::size_t i = 0; i < bytes; i += 8) count += count_bits(load_bits(bitmap + i, bytes - i));
    const bool reaches_past_end =
        length % 8 != 0 && static_cast<unsigned>(bitmap[bytes - 1]) >> (length % 8) != 0;
    return count == kept && !reaches_past_end;
}

template <class Element>
void place_row(const std::byte* values, const std::byte* bitmap, std::size_t length, std::byte* out) {
    for (std::size_t start = 0; start < length; start += 64) {
        std::uint64_t bits = load_bits(bitmap + start / 8, (length - start + 7) / 8);
        const std::size_t stop = length - start > 64 ? start + 64 : length;
        for (std::size_t i = start; i < stop; i += lanes, bits >>= lanes) {
            const auto is_kept = static_cast<__mmask16>(bits);
            const std::size_t count = count_bits(is_kept);
            const __m256i given = _mm256_maskz_loadu_epi16(first_lanes(count), values);
            Element::store(out + i * Element::bytes, first_lanes(stop - i), Element::expand(is_kept, given));
            values += 2 * count;
        }
    }
}

template <class Element>
bool place_by_bitmap(const std::byte* values, const std::byte* bitmaps, layout::Rows rows, std::size_t kept,
                     std::byte* out) {
    for (std::size_t row = 0; row < rows.count; ++row) {
        const std::byte* bitmap = bitmaps + row * bitmap_row_bytes(rows);
        if (!keeps_exactly(bitmap, rows.length, kept)) return false;
        place_row<Element>(values + 2 * row * kept, bitmap, rows.length,
                           out + row * rows.length * Element::bytes);
    }
    return true;
}

template <class Element>
bool place_by_gaps(const std::byte* values, const std::byte* gaps, std::size_t gap_bytes, layout::Rows rows,
                   std::size_t kept, std::byte* out) {
    const std::byte* gap = gaps;
    const std::byte* end = gaps + gap_bytes;
    for (std::size_t row = 0; row < rows.count; ++row, out += rows.length * Element::bytes) {
        __builtin_memset(out, 0, rows.length * Element::bytes);
        for (std::size_t k = 0, i = 0; k < kept; ++k, ++i, values += 2) {
            for (; gap != end && static_cast<std::size_t>(*gap) == gap_step; ++gap) i += gap_step;
            if (gap == end) return false;
            i += static_cast<std::size_t>(*gap++);
            if (i >= rows.length) return false;
            Element::store_one(out, i, values);
        }
    }
    return gap == end;
}

// The gaps of up to 64 positions, `skipped` positions after the last one kept; all but the first gap fit a byte.
std::size_t store_gaps(std::uint64_t bits, std::size_t skipped, std::byte* gaps, std::size_t room) {
    const __m512i numbers =
        _mm512_set_epi8(63, 62, 61, 60, 59, 58, 57, 56, 55, 54, 53, 52, 51, 50, 49, 48, 47, 46, 45, 44, 43,
                        42, 41, 40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22,
                        21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const std::size_t first = skipped + static_cast<std::size_t>(_tzcnt_u64(bits));
    const std::size_t whole = first / gap_step;
    const std::size_t count = count_bits(bits);
    if (whole + count > room) return room;
    for (std::size_t i = 0; i < whole; ++i) gaps[i] = static_cast<std::byte>(gap_step);
    const __m512i one = _mm512_set1_epi8(1);
    const __m512i positions = _mm512_maskz_compress_epi8(bits, numbers);
    const __m512i before = _mm512_permutexvar_epi8(_mm512_sub_epi8(numbers, one), positions);
    const __m512i between = _mm512_sub_epi8(_mm512_sub_epi8(positions, before), one);
    const __m512i all = _mm512_mask_set1_epi8(between, 1, static_cast<char>(first % gap_step));
    _mm512_mask_storeu_epi8(gaps + whole, _bzhi_u64(~0ULL, static_cast<unsigned>(count)), all);
    return whole + count;
}

std::size_t gaps_of_bitmaps(const std::byte* bitmaps, layout::Rows rows, std::byte* gaps, std::size_t limit) {
    const std::size_t bytes = bitmap_row_bytes(rows);
    std::size_t written = 0;
    for (std::size_t row = 0; row < rows.count; ++row) {
        std::size_t next = 0;
        for (std::size_t i = 0; i < bytes; i += 8) {
            const std::uint64_t bits = load_bits(bitmaps + row * bytes + i, bytes - i);
            if (bits == 0) continue;
            written += store_gaps(bits, 8 * i - next, gaps + written, limit - written);
            next = 8 * i + 64 - static_cast<std::size_t>(_lzcnt_u64(bits));
        }
    }
    return written;
}

}  // namespace

constinit const Select avx512::select = {
    {select_largest<Float32>, select_largest<Float16>, select_largest<BFloat16>},
    gaps_of_bitmaps,
    {place_by_bitmap<Float32>, place_by_bitmap<Float16>, place_by_bitmap<BFloat16>},
    {place_by_gaps<Float32>, place_by_gaps<Float16>, place_by_gaps<BFloat16>},
};

}  // namespace orbitsplit::kernels
