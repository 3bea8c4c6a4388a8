// lossless_bf16: the exponents of bfloat16 values are entropy-coded, signs and mantissas are stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "orbitsplit/execution.hpp"
#include "orbitsplit/frame.hpp"
#include "support/workspace.hpp"

namespace orbitsplit::lossless {

// Upper and lower bound on the payload bytes of `count` values.
constexpr std::size_t largest_payload(std::size_t count) { return count == 0 ? 0 : 1 + 2 * count; }
constexpr std::size_t smallest_payload(std::size_t count) { return count == 0 ? 0 : 1 + count; }

// Checksums are computed stream by stream, while the data are in the cache.
struct Encoded {
    std::size_t bytes;
    std::uint32_t checksum;  // of these bytes
};

// What encoding and decoding `count` values take of the memory.
std::size_t encode_memory_bytes(std::size_t count);
std::size_t decode_memory_bytes(std::size_t count);

// `payload` has room for largest_payload().
Encoded encode(const std::byte* data, DType dtype, std::size_t count, std::byte* payload,
               const Execution& execution, Arena& memory);

// Returns the checksum of the frame, continued from that of its header; until the caller has verified it, the values
// are unspecified. Throws CorruptFrameError for an invalid payload.
std::uint32_t decode(std::span<const std::byte> payload, DType dtype, std::size_t count, std::byte* data,
                     std::uint32_t header_checksum, const Execution& execution, Arena& memory);

}  // namespace orbitsplit::lossless
