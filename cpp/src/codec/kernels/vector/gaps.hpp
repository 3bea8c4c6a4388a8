// Bitmaps of kept positions as gaps, a byte of the bitmap at a time by table. All in an anonymous namespace, so that each
// file has its own copy.
#pragma once

#include "codec/kernels/kernels.hpp"
#include "codec/kernels/vector/octets.hpp"

namespace orbitsplit::kernels {

namespace {

// A gap is the number of positions skipped: bytes of this value while it fits, then the remainder.
constexpr std::size_t gap_step = 255;

// Of a byte of a bitmap: the gaps before its positions, the first counted from the byte's beginning; the positions
// skipped after the last one.
constexpr struct ByteGaps {
    std::uint8_t gaps[octet_masks][octet] = {};
    std::uint8_t trailing[octet_masks] = {};

    constexpr ByteGaps() {
        for (unsigned mask = 0; mask < octet_masks; ++mask) {
            unsigned count = 0;
            std::uint8_t skipped = 0;
            for (unsigned position = 0; position < octet; ++position) {
                if ((mask >> position & 1U) != 0) {
                    gaps[mask][count++] = skipped;
                    skipped = 0;
                } else {
                    ++skipped;
                }
            }
            trailing[mask] = skipped;  // all eight of an empty byte
        }
    }
} byte_gaps;

inline std::size_t bitmap_row_bytes(layout::Rows rows) { return (rows.length + 7) / 8; }

// The gaps of one byte of a bitmap that does not go the usual way: its first gap may need more than a byte, or there may be
// too little room. Returns how much is written then, or `limit`.
std::size_t add_gaps(unsigned mask, std::size_t skipped, std::byte* gaps, std::size_t written,
                     std::size_t limit) {
    const std::size_t count = octet_controls.count[mask];
    if (count == 0) return written;
    const std::size_t first = skipped + byte_gaps.gaps[mask][0];
    const std::size_t whole = first / gap_step;
    if (written + whole + count > limit) return limit;
    for (std::size_t k = 0; k < whole; ++k) gaps[written++] = static_cast<std::byte>(gap_step);
    gaps[written++] = static_cast<std::byte>(first % gap_step);
    for (std::size_t k = 1; k < count; ++k) gaps[written++] = static_cast<std::byte>(byte_gaps.gaps[mask][k]);
    return written;
}

std::size_t gaps_of_bitmaps(const std::byte* bitmaps, layout::Rows rows, std::byte* gaps, std::size_t limit) {
    const std::size_t bytes = bitmap_row_bytes(rows);
    std::size_t written = 0;
    for (std::size_t row = 0; row < rows.count; ++row) {
        std::size_t skipped = 0;  // before this byte
        for (std::size_t i = 0; i < bytes; ++i) {
            const auto mask = static_cast<unsigned>(bitmaps[row * bytes + i]);
            if (skipped + octet > gap_step || written + octet > limit) [[unlikely]] {
                written = add_gaps(mask, skipped, gaps, written, limit);
                if (written == limit) return limit;
            } else {
                std::uint64_t eight;
                __builtin_memcpy(&eight, byte_gaps.gaps[mask], sizeof eight);
                eight += skipped;  // the lowest byte is the first
                __builtin_memcpy(gaps + written, &eight, sizeof eight);
                written += octet_controls.count[mask];
            }
            skipped = byte_gaps.trailing[mask] + (skipped & (std::size_t{mask != 0} - 1));
        }
    }
    return written;
}

}  // namespace

}  // namespace orbitsplit::kernels
