// Rows of weights as the scalar kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "support/float_bits.hpp"
#include "weights/kernels/vector/rows.hpp"

namespace orbitsplit::weights {

namespace {

inline float quiet(float value) { return value == value ? value : std::numeric_limits<float>::quiet_NaN(); }

inline float scale_of(const std::byte* int8_group) {
    return float_bits::single_from_half(load<std::uint16_t>(int8_group));
}

inline void expand_int8(const std::byte* codes, int* q) {
    for (std::size_t i = 0; i < group; ++i) q[i] = static_cast<std::int8_t>(codes[i]);
}

inline void expand_int4(const std::byte* codes, int* q) {
    for (std::size_t i = 0; i < int4_code_bytes; ++i) {
        q[i] = std::to_integer<int>(codes[i]) & 15;
        q[i + 16] = std::to_integer<int>(codes[i]) >> 4;
    }
}

inline void expand_int5(const std::byte* codes, int* q) {
    expand_int4(codes, q);
    const auto fifth_bits = load<std::uint32_t>(codes + int4_code_bytes);
    for (std::size_t i = 0; i < group; ++i) q[i] |= static_cast<int>(fifth_bits >> i & 1U) << 4;
}

}  // namespace

}  // namespace orbitsplit::weights
