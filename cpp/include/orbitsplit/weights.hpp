// Quantised weights: matrices of weights in 8, 5 or 4 bits, and products with them.
//
// A matrix W[rows, columns] (the weight of a linear layer: a row for each output) is stored row by row; each row is
// divided into groups of 32 columns. With w' the stored value of a weight w, and all numbers little-endian:
//
//     int8   8.5 bits    for each group: a float16 d, 32 int8 q          w' = d q
//     int4   4.5 bits    for each row: float32 a, float32 b; for each    w' = a s q - b m
//            + 64 a row  group an uint8 s; for each group an uint8 m;
//                        for each group 16 bytes of codes q, 0..15
//     int5   5.5 bits    the same, with 20 bytes of codes q, 0..31,      w' = a s q - b m
//            + 64 a row  for each group
//
// int8 is the Q8_0 of GGUF files, byte for byte: d is the largest magnitude of the group / 127, q is w / d before d is
// rounded, rounded to nearest, ties away from zero; q = -128, which quantize() never writes, is read like any other.
// Where d is below 2^-25 it is stored as 0. Byte i of the codes of an int4 group has column i in its lower and column
// i + 16 in its upper four bits. int5 has so the lower four bits of its codes, and after these 16 bytes an uint32 whose bit
// i is the fifth bit of column i.
//
// A product y = x W^T with few rows of x runs on the quantised weights: each group of 32 elements of a row of x is
// rounded to 16 bits (codes from -32639 to 32639 with a float32 scale, an error of at most 2^-15.9 of the largest
// magnitude of the group), products of codes are summed exactly, and sums are added in one order. So results are the
// same bits on every instruction set and for any number of threads. A row of x with NaN or infinity gives a row of
// NaN, and every NaN that is written is 0x7FC00000. From about 100 rows of x on it is faster to dequantize some rows
// of W at a time and multiply floats with a good BLAS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "orbitsplit/error.hpp"
#include "orbitsplit/execution.hpp"
#include "orbitsplit/export.hpp"

namespace orbitsplit {

enum class WeightFormat : std::uint8_t { int8 = 0, int4 = 1, int5 = 2 };

// Columns that share a scale: the number of columns is a multiple of it.
inline constexpr std::int64_t weight_group = 32;

// A matrix in memory of the caller, which may be mapped from a file and begin at any address. Bytes may come from
// anywhere: whatever they are, each call below has a defined result.
struct WeightMatrix {
    WeightFormat format = WeightFormat::int8;
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    std::span<const std::byte> data;
};

// The size of a matrix. All functions throw std::invalid_argument for a format or a shape that does not exist
// (negative, columns no multiple of 32 from 32, 2^63 bytes or more), and for memory of another size than the shape
// needs.
ORBITSPLIT_API std::uint64_t quantized_bytes(WeightFormat format, std::int64_t rows, std::int64_t columns);

// Quantises row-major values into quantized_bytes() bytes at `out`. int4 and int5 search for each group's scale and minimum
// that make the squared error smallest, where `importance` (none, or a number for each column, at least 0: for example
// the mean square of what the column is multiplied by) weights the errors. Throws std::invalid_argument for values that
// are not finite or, with int8, above 127 times the largest float16.
ORBITSPLIT_API void quantize(WeightFormat format, std::span<const float> values, std::int64_t rows,
                             std::int64_t columns, std::span<std::byte> out,
                             std::span<const float> importance = {}, const Execution& execution = {});

// The values of rows first, first + 1, ..., as many as `out` has room for.
ORBITSPLIT_API void dequantize(const WeightMatrix& matrix, std::int64_t first, std::span<float> out,
                               const Execution& execution = {});

// The values of the rows that `indices` names, in their order (an embedding).
ORBITSPLIT_API void dequantize_rows(const WeightMatrix& matrix, std::span<const std::int64_t> indices,
                                    std::span<float> out, const Execution& execution = {});

// Bytes of working memory that a product needs, at any address.
ORBITSPLIT_API std::uint64_t product_scratch_bytes(std::int64_t inputs, std::int64_t columns);

// y[inputs, rows] = x[inputs, columns] W^T, row-major. With one thread nothing is allocated.
ORBITSPLIT_API void multiply(const WeightMatrix& matrix, std::span<const float> x, std::int64_t inputs,
                             std::span<float> y, std::span<std::byte> scratch,
                             const Execution& execution = {});

}  // namespace orbitsplit
