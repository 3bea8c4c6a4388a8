#include <algorithm>
#include <bit>

#include "weights/kernels/kernels.hpp"
#include "weights/kernels/scalar/rows.hpp"

namespace orbitsplit::weights {

namespace {

// Added to a float below 2^22 and taken away again it leaves the nearest integer, ties to even.
constexpr float rounding_magic = 12582912.0F;

void round_group(const float* x, std::int16_t* codes, float& scale_out, float& sum_out) {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < group; ++i)
        largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & float_bits::magnitude);
    if (largest >= float_bits::infinity) {
        std::fill(codes, codes + group, std::int16_t{0});
        scale_out = sum_out = std::numeric_limits<float>::quiet_NaN();
        return;
    }
    const float scale = std::max(std::bit_cast<float>(largest) / largest_code, smallest_scale);
    const float inverse = 1.0F / scale;
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < group; ++i) {
        codes[i] = static_cast<std::int16_t>((x[i] * inverse + rounding_magic) - rounding_magic);
        sum += codes[i];
    }
    scale_out = scale;
    sum_out = scale * static_cast<float>(sum);
}

void round(const float* x, std::size_t groups, std::size_t row, Inputs out) {
    for (std::size_t g = 0; g < padded(groups); ++g) {
        const std::size_t at = scale_at(g, row, out.rows);
        if (g < groups)
            round_group(x + g * group, out.codes + code_at(g, row, out.rows), out.scales[at], out.sums[at]);
        else
            out.scales[at] = out.sums[at] = 0.0F;
    }
}

void dequantise_int8(const std::byte* weights, std::size_t rows, std::size_t groups, float* out) {
    for (std::size_t g = 0; g < rows * groups; ++g, weights += int8_group_bytes, out += group) {
        const float scale = scale_of(weights);
        for (std::size_t i = 0; i < group; ++i)
            out[i] = quiet(scale * static_cast<float>(static_cast<std::int8_t>(weights[2 + i])));
    }
}

void dequantise_int4(const std::byte* weights, std::size_t rows, std::size_t groups, float* out) {
    int q[group];
    for (std::size_t row = 0; row < rows; ++row, weights += int4_row_bytes(groups))
        for (std::size_t g = 0; g < groups; ++g, out += group) {
            expand_int4(weights + int4_codes_at(groups) + g * int4_code_bytes, q);
            const auto s = std::to_integer<std::uint8_t>(weights[int4_scales_at + g]);
            const auto m = std::to_integer<std::uint8_t>(weights[int4_minima_at(groups) + g]);
            const float scale = load<float>(weights) * static_cast<float>(s);
            const float minimum = load<float>(weights + 4) * static_cast<float>(m);
            for (std::size_t i = 0; i < group; ++i)
                out[i] = quiet(scale * static_cast<float>(q[i]) - minimum);
        }
}

}  // namespace

constinit const Conversions scalar::conversions = {round, {dequantise_int8, dequantise_int4}};

}  // namespace orbitsplit::weights
