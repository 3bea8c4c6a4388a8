#include "orbitsplit/weights.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "support/pool.hpp"
#include "support/stop.hpp"
#include "weights/check.hpp"
#include "weights/kernels/dispatch.hpp"

namespace orbitsplit {

namespace weights {

std::size_t row_bytes(WeightFormat format, std::size_t groups) {
    if (format == WeightFormat::int8) return int8_row_bytes(groups);
    return format == WeightFormat::int4 ? int4_row_bytes(groups) : int5_row_bytes(groups);
}

void check_size(const char* what, std::uint64_t found, const char* unit, std::uint64_t needed) {
    if (found != needed)
        throw std::invalid_argument(std::string(what) + " has " + std::to_string(found) + unit +
                                    ", the shape needs " + std::to_string(needed));
}

namespace {

// Weights of a part: what one thread works on between two checks for a stop.
constexpr std::size_t part_bytes = std::size_t{1} << 18;

// Outputs that are computed for all rows of x before the next ones: their weights stay in the L2 cache. They are
// gathered and copied row by row, because the rows of y are often a power of two apart and would displace each other
// in the L1 cache.
constexpr std::size_t tile_bytes = std::size_t{1} << 16;
constexpr std::size_t most_tile_outputs = 64;

constexpr std::size_t cache_line = 64;

// Calls work(first, count) for parts of the rows.
template <class Work>
void by_parts(std::size_t rows, std::size_t rows_in_part, const Execution& execution, Work work) {
    pool::check_threads(execution.threads);
    const std::size_t step = std::max<std::size_t>(1, rows_in_part);
    pool::run_parts((rows + step - 1) / step, execution.threads, [&](std::size_t part) {
        throw_if_stopped(execution);
        work(part * step, std::min(step, rows - part * step));
    });
}

void check(const WeightMatrix& matrix) {
    check_size("data", matrix.data.size(), " bytes",
               quantized_bytes(matrix.format, matrix.rows, matrix.columns));
}

std::size_t groups_of(const WeightMatrix& matrix) { return static_cast<std::size_t>(matrix.columns) / group; }

void check_index(std::int64_t index, std::int64_t rows) {
    if (index < 0 || index >= rows)
        throw std::invalid_argument("row " + std::to_string(index) + " is not one of the " +
                                    std::to_string(rows) + " rows");
}

// The rows of x from `first` on, at most most_rows of them, in the memory that the caller gave.
Inputs block_of(std::span<std::byte> scratch, std::size_t inputs, std::size_t first, std::size_t groups) {
    void* memory = scratch.data();
    std::size_t space = scratch.size();
    std::align(cache_line, 1, memory, space);
    auto* scales = static_cast<float*>(memory);
    float* sums = scales + inputs * padded(groups);
    auto* codes = reinterpret_cast<std::int16_t*>(sums + inputs * padded(groups));
    return {codes + first * groups * group, scales + first * padded(groups), sums + first * padded(groups),
            std::min(most_rows, inputs - first)};
}

void multiply_tile(const Products& products, WeightFormat format, const std::byte* weights,
                   std::size_t outputs, std::size_t groups, Inputs x, float* y, std::size_t stride) {
    float tile[most_rows * most_tile_outputs];
    products.multiply[static_cast<std::size_t>(format)](weights, outputs, groups, x, tile, outputs);
    for (std::size_t r = 0; r < x.rows; ++r)
        std::memcpy(y + r * stride, tile + r * outputs, outputs * sizeof *y);
}

}  // namespace

}  // namespace weights

std::uint64_t quantized_bytes(WeightFormat format, std::int64_t rows, std::int64_t columns) {
    if (format > WeightFormat::int5)
        throw std::invalid_argument("weight format " + std::to_string(static_cast<int>(format)) +
                                    " is unknown; 0 is int8, 1 is int4, 2 is int5");
    if (rows < 0) throw std::invalid_argument("rows is " + std::to_string(rows) + ", it must be at least 0");
    if (columns < weight_group || columns % weight_group != 0)
        throw std::invalid_argument("columns is " + std::to_string(columns) +
                                    ", it must be a multiple of 32 from 32");
    constexpr std::uint64_t most = std::uint64_t{1} << 63;
    const auto count = static_cast<std::uint64_t>(std::max<std::int64_t>(1, rows));
    // Also as float32, so that no size of an array overflows.
    if (static_cast<std::uint64_t>(columns) * 4 > (most - 1) / count)
        throw std::invalid_argument("the matrix has 2^63 bytes or more");
    return static_cast<std::uint64_t>(rows) *
           weights::row_bytes(format, static_cast<std::size_t>(columns) / weights::group);
}

void dequantize(const WeightMatrix& matrix, std::int64_t first, std::span<float> out,
                const Execution& execution) {
    weights::check(matrix);
    const auto columns = static_cast<std::size_t>(matrix.columns);
    const std::size_t rows = out.size() / columns;
    weights::check_size("out", out.size(), " values", rows * columns);
    if (first < 0 || first > matrix.rows || rows > static_cast<std::size_t>(matrix.rows - first))
        throw std::invalid_argument("rows " + std::to_string(first) + " to " +
                                    std::to_string(first + static_cast<std::int64_t>(rows)) +
                                    " are not within the " + std::to_string(matrix.rows) + " rows");
    const std::size_t groups = weights::groups_of(matrix);
    const std::size_t row_bytes = weights::row_bytes(matrix.format, groups);
    const weights::Kernels kernels = weights::active();
    const auto start = static_cast<std::size_t>(first);
    weights::by_parts(
        rows, weights::part_bytes / row_bytes, execution, [&](std::size_t row, std::size_t count) {
            kernels.conversions->dequantise[static_cast<std::size_t>(matrix.format)](
                matrix.data.data() + (start + row) * row_bytes, count, groups, out.data() + row * columns);
        });
}

void dequantize_rows(const WeightMatrix& matrix, std::span<const std::int64_t> indices, std::span<float> out,
                     const Execution& execution) {
    weights::check(matrix);
    const auto columns = static_cast<std::size_t>(matrix.columns);
    if (out.size() / columns != indices.size() || out.size() % columns != 0)
        throw std::invalid_argument("out has " + std::to_string(out.size()) + " values, " +
                                    std::to_string(indices.size()) + " rows of " + std::to_string(columns) +
                                    " columns are to be written");
    for (const std::int64_t index : indices) weights::check_index(index, matrix.rows);
    const std::size_t groups = weights::groups_of(matrix);
    const std::size_t row_bytes = weights::row_bytes(matrix.format, groups);
    const weights::Kernels kernels = weights::active();
    const std::size_t step = weights::part_bytes / row_bytes;
    weights::by_parts(indices.size(), step, execution, [&](std::size_t first, std::size_t count) {
        for (std::size_t k = first; k < first + count; ++k)
            kernels.conversions->dequantise[static_cast<std::size_t>(matrix.format)](
                matrix.data.data() + static_cast<std::size_t>(indices[k]) * row_bytes, 1, groups,
                out.data() + k * columns);
    });
}

std::uint64_t product_scratch_bytes(std::int64_t inputs, std::int64_t columns) {
    if (inputs < 0)
        throw std::invalid_argument("inputs is " + std::to_string(inputs) + ", it must be at least 0");
    const std::uint64_t codes = quantized_bytes(WeightFormat::int8, inputs, columns) / 34 * 64;
    const auto groups = static_cast<std::size_t>(columns) / weights::group;
    return weights::cache_line + codes + static_cast<std::uint64_t>(inputs) * weights::padded(groups) * 8;
}

void multiply(const WeightMatrix& matrix, std::span<const float> x, std::int64_t inputs, std::span<float> y,
              std::span<std::byte> scratch, const Execution& execution) {
    weights::check(matrix);
    const std::uint64_t needed = product_scratch_bytes(inputs, matrix.columns);
    const auto count = static_cast<std::size_t>(inputs);
    const auto outputs = static_cast<std::size_t>(matrix.rows);
    const std::size_t groups = weights::groups_of(matrix);
    weights::check_size("x", x.size(), " values", count * static_cast<std::size_t>(matrix.columns));
    weights::check_size("y", y.size(), " values", count * outputs);
    if (scratch.size() < needed)
        throw std::invalid_argument("scratch has " + std::to_string(scratch.size()) + " bytes, " +
                                    std::to_string(needed) + " are needed");
    const weights::Kernels kernels = weights::active();
    for (std::size_t r = 0; r < count; ++r) {
        const std::size_t in_block = r % weights::most_rows;
        kernels.conversions->round(x.data() + r * groups * weights::group, groups, in_block,
                                   weights::block_of(scratch, count, r - in_block, groups));
    }
    const std::size_t row_bytes = weights::row_bytes(matrix.format, groups);
    const std::size_t tile =
        std::clamp<std::size_t>(weights::tile_bytes / row_bytes, 1, weights::most_tile_outputs);
    const std::size_t tiles = std::max<std::size_t>(1, weights::part_bytes / row_bytes / tile);
    weights::by_parts(outputs, tiles * tile, execution, [&](std::size_t first, std::size_t n) {
        for (std::size_t from = first; from < first + n; from += tile)
            for (std::size_t r = 0; r < count; r += weights::most_rows)
                weights::multiply_tile(
                    *kernels.products, matrix.format, matrix.data.data() + from * row_bytes,
                    std::min(tile, first + n - from), groups, weights::block_of(scratch, count, r, groups),
                    y.data() + r * outputs + from, outputs);
    });
}

}  // namespace orbitsplit
