#include "weights/kernels/kernels.hpp"
#include "weights/kernels/scalar/rows.hpp"

namespace orbitsplit::weights {

namespace {

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

template <std::size_t code_bytes, void (*Expand)(const std::byte*, int*)>
float product_with_minima(const std::byte* weights, std::size_t groups, Inputs x, std::size_t row) {
    float sums[lanes] = {};
    float minima[lanes] = {};
    int q[group];
    for (std::size_t g = 0; g < groups; ++g) {
        Expand(weights + int4_codes_at(groups) + g * code_bytes, q);
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

}  // namespace

constinit const Products scalar::products = {
    {multiply<int8_product, int8_row_bytes>,
     multiply<product_with_minima<int4_code_bytes, expand_int4>, int4_row_bytes>,
     multiply<product_with_minima<int5_code_bytes, expand_int5>, int5_row_bytes>},
};

}  // namespace orbitsplit::weights
