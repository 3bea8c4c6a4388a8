#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "support/float_bits.hpp"
#include "weights/kernels/kernels.hpp"

namespace orbitsplit::weights {

namespace {

template <class T>
T load(const std::byte* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

float quiet(float value) { return value == value ? value : std::numeric_limits<float>::quiet_NaN(); }

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

float total(const float* sums) {
    const auto half = [&](std::size_t i) { return (sums[i] + sums[i + 4]) + (sums[i + 2] + sums[i + 6]); };
    return half(0) + half(1);
}

void add_group(const int* q, const std::int16_t* x, float scale, float* sums) {
    for (std::size_t j = 0; j < lanes; ++j) {
        const std::size_t i = 2 * j;
        const int d = (q[i] * x[i] + q[i + 1] * x[i + 1]) + (q[i + 16] * x[i + 16] + q[i + 17] * x[i + 17]);
        sums[j] += scale * static_cast<float>(d);
    }
}

float scale_of(const std::byte* int8_group) {
    return float_bits::single_from_half(load<std::uint16_t>(int8_group));
}

void expand_int8(const std::byte* codes, int* q) {
    for (std::size_t i = 0; i < group; ++i) q[i] = static_cast<std::int8_t>(codes[i]);
}

void expand_int4(const std::byte* codes, int* q) {
    for (std::size_t i = 0; i < int4_code_bytes; ++i) {
        q[i] = std::to_integer<int>(codes[i]) & 15;
        q[i + 16] = std::to_integer<int>(codes[i]) >> 4;
    }
}

float int8_product(const std::byte* weights, std::size_t groups, Inputs x, std::size_t row) {
    float sums[lanes] = {};
    int q[group];
    for (std::size_t g = 0; g < groups; ++g, weights += int8_group_bytes) {
        expand_int8(weights + 2, q);
        add_group(q, x.codes + code_at(g, row, x.rows),
                  scale_of(weights) * x.scales[scale_at(g, row, x.rows)], sums);
    }
    return quiet(total(sums));
}

float int4_product(const std::byte* weights, std::size_t groups, Inputs x, std::size_t row) {
    float sums[lanes] = {};
    float minima[lanes] = {};
    int q[group];
    for (std::size_t g = 0; g < groups; ++g) {
        expand_int4(weights + int4_codes_at(groups) + g * int4_code_bytes, q);
        const auto s = std::to_integer<std::uint8_t>(weights[int4_scales_at + g]);
        const auto m = std::to_integer<std::uint8_t>(weights[int4_minima_at(groups) + g]);
        const std::size_t at = scale_at(g, row, x.rows);
        add_group(q, x.codes + code_at(g, row, x.rows), static_cast<float>(s) * x.scales[at], sums);
        minima[g % lanes] += static_cast<float>(m) * x.sums[at];
    }
    return quiet(load<float>(weights) * total(sums) - load<float>(weights + 4) * total(minima));
}

template <float (*Product)(const std::byte*, std::size_t, Inputs, std::size_t),
          std::size_t (*RowBytes)(std::size_t)>
void multiply(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
              std::size_t stride) {
    for (std::size_t n = 0; n < outputs; ++n, weights += RowBytes(groups))
        for (std::size_t r = 0; r < x.rows; ++r) y[r * stride + n] = Product(weights, groups, x, r);
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

constinit const Products scalar::products = {
    round,
    {multiply<int8_product, int8_row_bytes>, multiply<int4_product, int4_row_bytes>},
    {dequantise_int8, dequantise_int4},
};

}  // namespace orbitsplit::weights
