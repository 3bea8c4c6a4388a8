// lossless_bf16: the exponents of bfloat16 values through the stream coder, signs and mantissas as they are.
#pragma once

#include <cstddef>
#include <span>

#include "orbitsplit/frame.hpp"

namespace orbitsplit::lossless {

// Bytes of the payload for `count` values: at most, and at least.
constexpr std::size_t largest_payload(std::size_t count) { return count == 0 ? 0 : 1 + 2 * count; }
constexpr std::size_t smallest_payload(std::size_t count) { return count == 0 ? 0 : 1 + count; }

// Returns the size of the payload; `payload` holds the largest.
std::size_t encode(const std::byte* data, DType dtype, std::size_t count, std::byte* payload);

// Throws CorruptFrameError.
void decode(std::span<const std::byte> payload, DType dtype, std::size_t count, std::byte* data);

}  // namespace orbitsplit::lossless
