// lossless_bf16: the exponents of bfloat16 values through the stream coder, signs and mantissas as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "orbitsplit/frame.hpp"

namespace orbitsplit::lossless {

// Bytes of the payload for `count` values: at most, and at least.
constexpr std::size_t largest_payload(std::size_t count) { return count == 0 ? 0 : 1 + 2 * count; }
constexpr std::size_t smallest_payload(std::size_t count) { return count == 0 ? 0 : 1 + count; }

// Checksums are computed stream by stream, while what they are of is in the cache.
struct Encoded {
    std::size_t bytes;
    std::uint32_t checksum;  // of these bytes
};

// `payload` holds the largest.
Encoded encode(const std::byte* data, DType dtype, std::size_t count, std::byte* payload);

// Returns the checksum of the frame, from that of its header on: until it is compared, the values may be anything.
// Throws CorruptFrameError, also where only the checksum would tell that the bytes are damaged.
std::uint32_t decode(std::span<const std::byte> payload, DType dtype, std::size_t count, std::byte* data,
                     std::uint32_t header_checksum);

}  // namespace orbitsplit::lossless
