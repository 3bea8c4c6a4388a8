// The numeric kernels of quantised weights: one struct of function pointers for each topic.
//
// scalar/ is the specification. As in codec/kernels/kernels.hpp, files of an instruction set include only this header,
// similar ones and intrinsics, and define everything but their tables in anonymous namespaces.
#pragma once

#include <cstddef>
#include <cstdint>

#include "weights/layout.hpp"

namespace orbitsplit::weights {

// Functions that depend on the format are arrays indexed by WeightFormat.
inline constexpr std::size_t formats = 3;

// Lanes of a sum: each adds up its part on its own, and at the end they are added as
// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
inline constexpr std::size_t lanes = 8;

// Codes of x are at most this: their upper and their lower byte both fit into a signed byte.
inline constexpr float largest_code = 32639.0F;
inline constexpr float smallest_scale = 0x1p-126F;

// Kernels take at most this many rows of x at a time.
inline constexpr std::size_t most_rows = 8;

// Groups of a row of x, rounded up, so that the numbers of eight groups can be read at once.
namespace {
constexpr std::size_t padded(std::size_t groups) { return (groups + lanes - 1) / lanes * lanes; }
}  // namespace

// Up to most_rows rows of x in 16 bits, side by side for each group, so that all are at fixed distances. The scales of
// padding are 0, also for rows that have NaN.
struct Inputs {
    std::int16_t* codes;  // [groups, rows, 32]
    float* scales;        // [padded(groups) / lanes, rows, lanes]
    float* sums;          // the same: the scale times the sum of the group's codes
    std::size_t rows;
};

namespace {
constexpr std::size_t code_at(std::size_t g, std::size_t row, std::size_t rows) {
    return (g * rows + row) * group;
}
constexpr std::size_t scale_at(std::size_t g, std::size_t row, std::size_t rows) {
    return (g / lanes * rows + row) * lanes + g % lanes;
}
}  // namespace

struct Conversions {
    // Row `row` of x to codes: scale = max(largest magnitude / largest_code, smallest_scale), code = x * (1 / scale) rounded
    // to nearest, ties to even. A group with a value that is not finite has codes 0 and the scale NaN.
    void (*round)(const float* x, std::size_t groups, std::size_t row, Inputs out);

    // The values of rows of weights: d * q, or (a * s) * q - b * m.
    void (*dequantise[formats])(const std::byte* weights, std::size_t rows, std::size_t groups, float* out);
};

struct Products {
    // y[r * stride + n] for `outputs` rows n of weights and all rows r of x. The sum of a group in lane j is
    // d = sum of the products of codes at 2 j, 2 j + 1, 2 j + 16 and 2 j + 17; (scale of W * scale of x) * d is added to
    // the lane, group by group. int4 and int5 do so with s for the scale of W; in lane g % 8 of a second sum they add
    // m * (sum of x), group by group, and y = a * first - b * second.
    void (*multiply[formats])(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x,
                              float* y, std::size_t stride);
};

struct Kernels {
    const Conversions* conversions;
    const Products* products;
};

namespace scalar {
extern const Conversions conversions;
extern const Products products;
}  // namespace scalar

namespace avx2 {
extern const Conversions conversions;
extern const Products products;
}  // namespace avx2

namespace avx512 {
extern const Products products;
}  // namespace avx512

namespace neon {
extern const Conversions conversions;
extern const Products products;
}  // namespace neon

}  // namespace orbitsplit::weights
