// What the kernels of all instruction sets have in common: loops over groups, and the choice of a function by rows of x.
// All in an anonymous namespace, so that each file has its own copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "weights/kernels/kernels.hpp"

namespace orbitsplit::weights {

namespace {

template <class T>
inline T load(const std::byte* bytes) {
    T value;
    __builtin_memcpy(&value, bytes, sizeof value);
    return value;
}

// `round` of Conversions; round_group(x, codes, scale, sum) does one group.
template <auto round_group>
void round_row(const float* x, std::size_t groups, std::size_t row, Inputs out) {
    for (std::size_t g = 0; g < padded(groups); ++g) {
        const std::size_t at = scale_at(g, row, out.rows);
        if (g < groups)
            round_group(x + g * group, out.codes + code_at(g, row, out.rows), out.scales[at], out.sums[at]);
        else
            out.scales[at] = out.sums[at] = 0.0F;
    }
}

// `dequantise` of int4 and int5; dequantise_group(codes, scale, minimum, out) does one group.
template <std::size_t code_bytes, auto dequantise_group>
void dequantise_with_minima(const std::byte* weights, std::size_t rows, std::size_t groups, float* out) {
    for (std::size_t row = 0; row < rows; ++row, weights += int4_codes_at(groups) + groups * code_bytes) {
        const float scale = load<float>(weights);
        const float minimum = load<float>(weights + 4);
        for (std::size_t g = 0; g < groups; ++g, out += group) {
            const auto s = static_cast<std::uint8_t>(weights[int4_scales_at + g]);
            const auto m = static_cast<std::uint8_t>(weights[int4_minima_at(groups) + g]);
            dequantise_group(weights + int4_codes_at(groups) + g * code_bytes, scale * static_cast<float>(s),
                             minimum * static_cast<float>(m), out);
        }
    }
}

// Chooses the function for the number of rows of x, all of which are then in registers.
template <template <std::size_t> class Multiply>
void by_rows(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
             std::size_t stride) {
    constexpr decltype(&Multiply<1>::run) functions[most_rows] = {
        Multiply<1>::run, Multiply<2>::run, Multiply<3>::run, Multiply<4>::run,
        Multiply<5>::run, Multiply<6>::run, Multiply<7>::run, Multiply<8>::run};
    functions[x.rows - 1](weights, outputs, groups, x, y, stride);
}

}  // namespace

}  // namespace orbitsplit::weights
