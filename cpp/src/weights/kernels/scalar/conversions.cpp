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

void dequantise_int8(const std::byte* weights, std::size_t rows, std::size_t groups, float* out) {
    for (std::size_t g = 0; g < rows * groups; ++g, weights += int8_group_bytes, out += group) {
        const float scale = scale_of(weights);
        for (std::size_t i = 0; i < group; ++i)
            out[i] = quiet(scale * static_cast<float>(static_cast<std::int8_t>(weights[2 + i])));
    }
}

template <void (*Expand)(const std::byte*, int*)>
void dequantise_group(const std::byte* codes, float scale, float minimum, float* out) {
    int q[group];
    Expand(codes, q);
    for (std::size_t i = 0; i < group; ++i) out[i] = quiet(scale * static_cast<float>(q[i]) - minimum);
}

}  // namespace

constinit const Conversions scalar::conversions = {
    round_row<round_group>,
    {dequantise_int8, dequantise_with_minima<int4_code_bytes, dequantise_group<expand_int4>>,
     dequantise_with_minima<int5_code_bytes, dequantise_group<expand_int5>>}};

}  // namespace orbitsplit::weights
