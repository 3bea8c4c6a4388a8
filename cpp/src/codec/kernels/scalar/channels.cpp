#include <algorithm>
#include <cmath>

#include "codec/kernels/elements.hpp"
#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

using elements::Float32;
using elements::load;
using elements::load_single;
using elements::store;

float parameter(const float* numbers, std::size_t channel) {
    return numbers != nullptr ? numbers[channel] : 0;
}

// A value outside the range of codes, as the nearest finite bfloat16.
std::uint16_t escape_value(float y) {
    return float_bits::bf16_from_single(float_bits::clamp(y, float_bits::largest_bf16));
}

float clamp(float x) {
    const float below = x < Float32::largest ? x : Float32::largest;
    return below > -Float32::largest ? below : -Float32::largest;
}

std::size_t quantise(const std::byte* in, layout::Rows rows, const ChannelScales& scales, std::int8_t* codes,
                     std::byte* values) {
    std::size_t escapes = 0;
    for (std::size_t row = 0; row < rows.count; ++row)
        for (std::size_t c = 0; c < rows.length; ++c) {
            const float y = load_single<Float32>(in, row * rows.length + c) - parameter(scales.shift, c);
            const float steps = std::fabs(y) * scales.inverse_step[c] + scales.rounding;
            std::int8_t& code = codes[row * rows.length + c];
            if (std::fabs(y) < parameter(scales.threshold, c)) {
                code = 0;
            } else if (steps < 128) {
                const int size = static_cast<int>(steps);
                code = static_cast<std::int8_t>(y < 0 ? -size : size);
            } else if (std::isfinite(y)) {
                code = escape_code;
                store(values, escapes++, escape_value(y));
            } else {
                return not_finite;
            }
        }
    return escapes;
}

std::size_t dequantise(const std::int8_t* codes, layout::Rows rows, const ChannelScales& scales,
                       const std::byte* values, std::size_t count, std::byte* out) {
    std::size_t used = 0;
    for (std::size_t row = 0; row < rows.count; ++row)
        for (std::size_t c = 0; c < rows.length; ++c) {
            const int code = codes[row * rows.length + c];
            float y = 0;
            if (code == escape_code) {
                if (used == count) return not_finite;
                y = float_bits::single_from_bf16(load<std::uint16_t>(values, used++));
                if (!std::isfinite(y)) return not_finite;
            } else if (code != 0) {
                y = (static_cast<float>(code) - std::copysign(scales.shrink, static_cast<float>(code))) *
                    scales.step[c];
            }
            store(out, row * rows.length + c, Float32::from_single(clamp(y + parameter(scales.shift, c))));
        }
    return used;
}

// Butterflies of distance 1, 2, 4, ...: the order within one distance does not affect the result.
void hadamard(float* y, std::size_t count, std::size_t block, float scale) {
    for (std::size_t distance = 1; distance < block; distance *= 2)
        for (std::size_t start = 0; start < count; start += 2 * distance)
            for (std::size_t i = start; i < start + distance; ++i) {
                const float a = y[i];
                const float b = y[i + distance];
                y[i] = a + b;
                y[i + distance] = a - b;
            }
    for (std::size_t i = 0; i < count; ++i) y[i] *= scale;
}

// Tiled, so that both sides stay in the cache.
constexpr std::size_t tile = 64;

void to_columns(const std::int8_t* in, layout::Rows rows, std::int8_t* out) {
    for (std::size_t first = 0; first < rows.length; first += tile)
        for (std::size_t row = 0; row < rows.count; ++row)
            for (std::size_t c = first; c < std::min(first + tile, rows.length); ++c)
                out[c * rows.count + row] = in[row * rows.length + c];
}

void to_rows(const std::int8_t* in, layout::Rows rows, std::int8_t* out) {
    for (std::size_t first = 0; first < rows.length; first += tile)
        for (std::size_t row = 0; row < rows.count; ++row)
            for (std::size_t c = first; c < std::min(first + tile, rows.length); ++c)
                out[row * rows.length + c] = in[c * rows.count + row];
}

// Each result is summed in the order of the factors, as every kernel must. Four factors at a time, so that sums are
// stored less often.
void multiply(const float* x, layout::Rows rows, const float* matrix, float* y) {
    const std::size_t n = rows.length;
    std::fill_n(y, rows.count * n, 0.0F);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (std::size_t row = 0; row < rows.count; ++row) {
            const float* a = x + row * n + i;
            const float* m = matrix + i * n;
            float* sums = y + row * n;
            for (std::size_t j = 0; j < n; ++j)
                sums[j] = sums[j] + a[0] * m[j] + a[1] * m[n + j] + a[2] * m[2 * n + j] + a[3] * m[3 * n + j];
        }
    for (; i < n; ++i)
        for (std::size_t row = 0; row < rows.count; ++row)
            for (std::size_t j = 0; j < n; ++j) y[row * n + j] += x[row * n + i] * matrix[i * n + j];
}

}  // namespace

constinit const Channels scalar::channels = {quantise, dequantise, hadamard, to_columns, to_rows, multiply};

}  // namespace orbitsplit::kernels
