// Conversions between float32, float16 and bfloat16 by their bits, branch-free so that loops vectorise.
//
// No conversion instruction is used: machines differ in their treatment of NaN, and the portable build has none.
// Conversions are exact or round to nearest, ties to even; a NaN becomes a quiet NaN of the same sign.
#pragma once

#include <bit>
#include <cstdint>

namespace orbitsplit::float_bits {

inline constexpr std::uint32_t magnitude = 0x7FFFFFFF;
inline constexpr std::uint32_t infinity = 0x7F800000;
inline constexpr float largest_half = 65504.0F;
inline constexpr float largest_bf16 = 0x1.FEp127F;

// By masks, because compilers turn `?:` into a branch if one side is expensive, and then do not vectorise.
inline std::uint32_t select(bool condition, std::uint32_t yes, std::uint32_t no) {
    const std::uint32_t mask = 0U - static_cast<std::uint32_t>(condition);
    return (yes & mask) | (no & ~mask);
}

// For numbers below 2^31: the oldest vector instruction sets only compare signed numbers.
inline bool is_above(std::uint32_t a, std::uint32_t b) {
    return static_cast<std::int32_t>(a) > static_cast<std::int32_t>(b);
}

// Clamps the magnitude; the result for NaN is meaningless.
inline float clamp(float value, float largest) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t size = bits & magnitude;
    const auto limit = std::bit_cast<std::uint32_t>(largest);
    return std::bit_cast<float>(select(is_above(size, limit), limit, size) | (bits & ~magnitude));
}

inline float single_from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

inline std::uint16_t bf16_from_single(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const std::uint32_t quiet = (bits >> 16) | 0x40;
    return static_cast<std::uint16_t>(select(is_above(bits & magnitude, infinity), quiet, rounded));
}

// The smallest bfloat16 not below a finite, positive value.
inline std::uint16_t bf16_above(float value) {
    return static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(value) + 0xFFFF) >> 16);
}

inline float single_from_half(std::uint16_t half) {
    const std::uint32_t sign = (std::uint32_t{half} & 0x8000) << 16;
    const std::uint32_t shifted = (std::uint32_t{half} & 0x7FFF) << 13;
    const std::uint32_t normal = shifted + 0x38000000;   // the exponent's bias: 127 - 15
    const std::uint32_t special = shifted + 0x70000000;  // infinity and NaN
    // Below 2^-14 the leading one is not implicit: subtract it again. All terms are normal numbers.
    const float small = std::bit_cast<float>(shifted + 0x38800000) - std::bit_cast<float>(0x38800000U);
    const std::uint32_t finite =
        select(is_above(0x00800000, shifted), std::bit_cast<std::uint32_t>(small), normal);
    return std::bit_cast<float>(select(is_above(shifted, 0x0F7FFFFF), special, finite) | sign);
}

inline std::uint16_t half_from_single(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t size = bits & magnitude;
    const std::uint32_t normal = (size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13;
    // One unit of 0.5 is one unit of a subnormal half: the addition rounds.
    const std::uint32_t small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5F) - 0x3F000000;
    const std::uint32_t special = select(is_above(size, infinity), 0x7E00 | ((size >> 13) & 0x3FF), 0x7C00);
    const std::uint32_t half =
        select(is_above(size, 0x477FFFFF), special, select(is_above(0x38800000, size), small, normal));
    return static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000));
}

}  // namespace orbitsplit::float_bits
