// Where the numbers of a quantised row are; orbitsplit/weights.hpp says what they mean.
#pragma once

#include <cstddef>

namespace orbitsplit::weights {

inline constexpr std::size_t group = 32;
inline constexpr std::size_t int8_group_bytes = 2 + group;  // a float16, then the codes
inline constexpr std::size_t int4_scales_at = 8;            // after two float32
inline constexpr std::size_t int4_code_bytes = group / 2;
inline constexpr std::size_t int5_code_bytes = int4_code_bytes + group / 8;  // then the fifth bits

// Each file has its own copy: kernels are compiled for processors that may not be the one that runs.
namespace {

constexpr std::size_t int8_row_bytes(std::size_t groups) { return groups * int8_group_bytes; }

// int4 and int5: the scales of all groups, their minima, their codes.
constexpr std::size_t int4_minima_at(std::size_t groups) { return int4_scales_at + groups; }
constexpr std::size_t int4_codes_at(std::size_t groups) { return int4_scales_at + 2 * groups; }
constexpr std::size_t int4_row_bytes(std::size_t groups) {
    return int4_codes_at(groups) + groups * int4_code_bytes;
}
constexpr std::size_t int5_row_bytes(std::size_t groups) {
    return int4_codes_at(groups) + groups * int5_code_bytes;
}

}  // namespace

}  // namespace orbitsplit::weights
