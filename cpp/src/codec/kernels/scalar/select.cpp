#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <span>

#include "codec/frame/layout.hpp"
#include "codec/kernels/elements.hpp"
#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

using elements::BFloat16;
using elements::Float16;
using elements::Float32;
using elements::load;
using elements::store;

// A gap is the number of positions skipped: bytes of this value while it fits, then the remainder.
constexpr std::size_t gap_step = 255;

// The keys above the threshold are kept, and of those equal to it the first `ties`.
struct Threshold {
    std::uint32_t key;
    std::size_t ties;
};

// The kept-th largest of 31-bit keys by radix select, most significant digit first. Only keys with the digits found
// so far remain candidates; `candidates` has room for all keys. Digits are small because rows are short and the
// counts must be cleared for each digit.
Threshold find_threshold(std::span<const std::uint32_t> keys, std::size_t kept, std::uint32_t* candidates) {
    struct Digit {
        int shift;
        int bits;
    };
    constexpr std::array<Digit, 4> digits = {{{23, 8}, {15, 8}, {7, 8}, {0, 7}}};
    // Two sets of counts, because neighbours often share a digit and incrementing the same count twice stalls.
    std::array<std::array<std::uint32_t, 256>, 2> counts;
    std::uint32_t prefix = 0;
    std::size_t missing = kept;
    for (const auto [shift, bits] : digits) {
        const std::uint32_t mask = (1U << bits) - 1;
        for (auto& count : counts) std::fill_n(count.begin(), mask + 1, 0U);
        for (std::size_t i = 0; i < keys.size(); ++i) ++counts[i % 2][(keys[i] >> shift) & mask];
        std::uint32_t digit = mask;
        for (; counts[0][digit] + counts[1][digit] < missing; --digit)
            missing -= counts[0][digit] + counts[1][digit];
        prefix = (prefix << bits) | digit;
        std::size_t count = 0;
        for (const std::uint32_t key : keys) {
            candidates[count] = key;
            count += static_cast<std::size_t>(key >> shift == prefix);
        }
        keys = {candidates, count};
    }
    return {prefix, missing};
}

std::byte bits_above(const std::uint32_t* keys, std::size_t count, std::uint32_t threshold) {
    unsigned bits = 0;
    for (std::size_t i = 0; i < count; ++i) bits |= static_cast<unsigned>(keys[i] > threshold) << i;
    return static_cast<std::byte>(bits);
}

void mark_kept(std::span<const std::uint32_t> keys, Threshold threshold, std::span<std::byte> bitmap) {
    for (std::size_t byte = 0; byte < keys.size() / 8; ++byte)
        bitmap[byte] = bits_above(&keys[8 * byte], 8, threshold.key);
    if (keys.size() % 8 != 0)
        bitmap.back() = bits_above(&keys[keys.size() / 8 * 8], keys.size() % 8, threshold.key);
    for (std::size_t i = 0; threshold.ties > 0; ++i)
        if (keys[i] == threshold.key) {
            bitmap[i / 8] |= static_cast<std::byte>(1U << (i % 8));
            --threshold.ties;
        }
}

template <class Visit>
void visit_set_bits(std::span<const std::byte> bitmap, Visit visit) {
    for (std::size_t start = 0; start < bitmap.size(); start += 8) {
        std::uint64_t bits = 0;
        std::memcpy(&bits, bitmap.data() + start, std::min<std::size_t>(8, bitmap.size() - start));
        for (; bits != 0; bits &= bits - 1)
            visit(8 * start + static_cast<std::size_t>(std::countr_zero(bits)));
    }
}

std::size_t count_set_bits(std::span<const std::byte> bitmap) {
    std::size_t count = 0;
    for (const std::byte byte : bitmap)
        count += static_cast<std::size_t>(std::popcount(std::to_integer<unsigned>(byte)));
    return count;
}

// An element in 16 bits: unchanged for a 16-bit dtype, else the nearest finite bfloat16.
template <class Element>
std::uint16_t shorten(typename Element::Bits bits) {
    if constexpr (sizeof bits == 2)
        return bits;
    else
        return float_bits::bf16_from_single(elements::clamp<elements::BFloat16>(Element::to_single(bits)));
}

template <class Element>
typename Element::Bits lengthen(std::uint16_t bits) {
    if constexpr (sizeof(typename Element::Bits) == 2)
        return bits;
    else
        return std::uint32_t{bits} << 16;
}

template <class Element>
bool select_largest(const std::byte* in, layout::Rows rows, std::size_t kept, std::uint32_t* scratch,
                    std::byte* values, std::byte* bitmaps) {
    const std::size_t bitmap_bytes = layout::bitmap_row_bytes(rows);
    const std::span keys(scratch, rows.length);
    std::size_t written = 0;
    for (std::size_t row = 0; row < rows.count; ++row) {
        const std::byte* here = in + row * rows.length * sizeof(typename Element::Bits);
        std::int32_t largest =
            0;  // signed, because the oldest vector instruction sets have no unsigned maximum
        for (std::size_t i = 0; i < rows.length; ++i) {
            keys[i] = Element::key(load<typename Element::Bits>(here, i));
            largest = std::max(largest, static_cast<std::int32_t>(keys[i]));
        }
        if (static_cast<std::uint32_t>(largest) >= Element::infinite_key) return false;
        const std::span bitmap(bitmaps + row * bitmap_bytes, bitmap_bytes);
        mark_kept(keys, find_threshold(keys, kept, scratch + rows.length), bitmap);
        visit_set_bits(bitmap, [&](std::size_t i) {
            store(values, written++, shorten<Element>(load<typename Element::Bits>(here, i)));
        });
    }
    return true;
}

template <class Element>
bool place_by_bitmap(const std::byte* values, const std::byte* bitmaps, layout::Rows rows, std::size_t kept,
                     std::byte* out) {
    const std::size_t bitmap_bytes = layout::bitmap_row_bytes(rows);
    const std::size_t row_bytes = rows.length * sizeof(typename Element::Bits);
    std::size_t read = 0;
    for (std::size_t row = 0; row < rows.count; ++row) {
        const std::span bitmap(bitmaps + row * bitmap_bytes, bitmap_bytes);
        const bool reaches_past_end =
            rows.length % 8 != 0 && std::to_integer<unsigned>(bitmap.back()) >> (rows.length % 8) != 0;
        if (reaches_past_end || count_set_bits(bitmap) != kept) return false;
        std::fill_n(out + row * row_bytes, row_bytes, std::byte{0});
        visit_set_bits(bitmap, [&](std::size_t i) {
            store(out, row * rows.length + i, lengthen<Element>(load<std::uint16_t>(values, read++)));
        });
    }
    return true;
}

std::size_t gaps_of_bitmaps(const std::byte* bitmaps, layout::Rows rows, std::byte* gaps, std::size_t limit) {
    const std::size_t bitmap_bytes = layout::bitmap_row_bytes(rows);
    std::size_t written = 0;
    for (std::size_t row = 0; row < rows.count; ++row) {
        std::size_t next = 0;
        visit_set_bits({bitmaps + row * bitmap_bytes, bitmap_bytes}, [&](std::size_t i) {
            const std::size_t whole = (i - next) / gap_step;
            if (written + whole >= limit) {
                written = limit;
                return;
            }
            std::fill_n(gaps + written, whole, static_cast<std::byte>(gap_step));
            gaps[written + whole] = static_cast<std::byte>((i - next) % gap_step);
            written += whole + 1;
            next = i + 1;
        });
    }
    return written;
}

template <class Element>
bool place_by_gaps(const std::byte* values, const std::byte* gaps, std::size_t gap_bytes, layout::Rows rows,
                   std::size_t kept, std::byte* out) {
    const std::size_t row_bytes = rows.length * sizeof(typename Element::Bits);
    std::size_t read = 0;
    std::size_t at = 0;
    for (std::size_t row = 0; row < rows.count; ++row) {
        std::fill_n(out + row * row_bytes, row_bytes, std::byte{0});
        for (std::size_t k = 0, i = 0; k < kept; ++k, ++i) {
            while (at < gap_bytes && std::to_integer<std::size_t>(gaps[at]) == gap_step) i += gap_step, ++at;
            if (at == gap_bytes) return false;
            i += std::to_integer<std::size_t>(gaps[at++]);
            if (i >= rows.length) return false;
            store(out, row * rows.length + i, lengthen<Element>(load<std::uint16_t>(values, read++)));
        }
    }
    return at == gap_bytes;
}

}  // namespace

constinit const Select scalar::select = {
    {select_largest<Float32>, select_largest<Float16>, select_largest<BFloat16>},
    gaps_of_bitmaps,
    {place_by_bitmap<Float32>, place_by_bitmap<Float16>, place_by_bitmap<BFloat16>},
    {place_by_gaps<Float32>, place_by_gaps<Float16>, place_by_gaps<BFloat16>},
};

}  // namespace orbitsplit::kernels
