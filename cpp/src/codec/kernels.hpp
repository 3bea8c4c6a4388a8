// What the codecs do to numbers, apart from framing. scalar.cpp and topk.cpp are the specification; they are
// written so that compilers vectorise them, and a set for an instruction set fills in the same functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/layout.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit::kernels {

// Values of `dtype` at `in`, `count` of them, to bfloat16 and back. On the way back finite ones stay finite.
void to_bf16(const std::byte* in, DType dtype, std::size_t count, std::byte* out);
void from_bf16(const std::byte* in, DType dtype, std::size_t count, std::byte* out);

// Groups of each row to one bfloat16 scale and codes of `bits` (8 or 4). False: a value was not finite.
bool quantise(const std::byte* in, DType dtype, layout::Rows rows, std::size_t group, int bits,
              std::byte* scales, std::byte* codes);

// The reverse. False: a scale is not a positive, normal, finite number.
bool dequantise(const std::byte* scales, const std::byte* codes, DType dtype, layout::Rows rows,
                std::size_t group, int bits, std::byte* out);

// The `kept` largest magnitudes of each row, ties by lowest index: their values (16 bits each) and a bitmap
// of their positions, both row after row. False: a value was not finite.
bool select_largest(const std::byte* in, DType dtype, layout::Rows rows, std::size_t kept, std::byte* values,
                    std::byte* bitmaps);

// The positions in a bitmap as gaps: for each, the positions skipped since the last one, in bytes that add up
// and of which only the last is below 255.
std::vector<std::byte> gaps_of_bitmaps(const std::byte* bitmaps, layout::Rows rows);

// The reverse of both, into zeroed memory. False: not exactly `kept` positions inside each row.
bool place_by_bitmap(const std::byte* values, const std::byte* bitmaps, DType dtype, layout::Rows rows,
                     std::size_t kept, std::byte* out);
bool place_by_gaps(const std::byte* values, std::span<const std::byte> gaps, DType dtype, layout::Rows rows,
                   std::size_t kept, std::byte* out);

// CRC-32C without special instructions, on the register itself (crc32c() inverts it before and after).
std::uint32_t update_crc32c_portable(std::uint32_t crc, std::span<const std::byte> bytes);

// Index of the first value that is NaN or infinite; `count` if none is.
std::size_t first_non_finite(const std::byte* in, DType dtype, std::size_t count);

}  // namespace orbitsplit::kernels
