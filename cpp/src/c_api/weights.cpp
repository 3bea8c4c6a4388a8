// Quantised weights.
#include "orbitsplit/weights.hpp"

#include <cstdint>
#include <limits>
#include <new>
#include <string>

#include "c_api/execution.hpp"
#include "c_api/status.hpp"
#include "orbitsplit/c_api.h"

using namespace orbitsplit;
using namespace orbitsplit::c_api;

namespace {

static_assert(static_cast<int>(WeightFormat::int5) == ORBITSPLIT_WEIGHT_INT5);

WeightFormat format_of(std::int32_t format) {
    if (format < ORBITSPLIT_WEIGHT_INT8 || format > ORBITSPLIT_WEIGHT_INT5)
        throw std::invalid_argument("format is " + std::to_string(format) + ", it must be from 0 to 2");
    return static_cast<WeightFormat>(format);
}

WeightMatrix matrix_of(const orbitsplit_weight_matrix* given) {
    const orbitsplit_weight_matrix& matrix = needed(given, "matrix");
    return {.format = format_of(matrix.format),
            .rows = matrix.rows,
            .columns = matrix.columns,
            .data = bytes_of(matrix.data, matrix.data_bytes, "data of the matrix")};
}

std::size_t size_of(std::uint64_t bytes) {
    if (bytes > std::numeric_limits<std::size_t>::max()) throw std::bad_alloc();
    return static_cast<std::size_t>(bytes);
}

// The numbers of a matrix in float32, whose shape is valid: its bytes in the int8 format fit 63 bits.
std::size_t count_of(std::int64_t rows, std::int64_t columns) {
    quantized_bytes(WeightFormat::int8, rows, columns);
    return size_of(static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(columns));
}

}  // namespace

extern "C" {

orbitsplit_status orbitsplit_quantized_bytes(int32_t format, int64_t rows, int64_t columns, size_t* bytes,
                                             orbitsplit_error* error) {
    return guarded(
        error, [&] { needed(bytes, "bytes") = size_of(quantized_bytes(format_of(format), rows, columns)); });
}

orbitsplit_status orbitsplit_quantize(int32_t format, int64_t rows, int64_t columns, const float* values,
                                      const float* importance, const orbitsplit_execution* execution,
                                      void* data, size_t data_bytes, orbitsplit_error* error) {
    return guarded(error, [&] {
        const std::span given = array_of(values, count_of(rows, columns), "values");
        const std::span<const float> weights(importance,
                                             importance == nullptr ? 0 : static_cast<std::size_t>(columns));
        quantize(format_of(format), given, rows, columns, memory_of(data, data_bytes, "data"), weights,
                 execution_of(execution));
    });
}

orbitsplit_status orbitsplit_dequantize(const orbitsplit_weight_matrix* matrix, int64_t first, int64_t count,
                                        const orbitsplit_execution* execution, float* values,
                                        orbitsplit_error* error) {
    return guarded(error, [&] {
        const WeightMatrix found = matrix_of(matrix);
        const std::span out = array_of(values, count_of(count, found.columns), "values");
        dequantize(found, first, out, execution_of(execution));
    });
}

orbitsplit_status orbitsplit_product_scratch_bytes(int64_t inputs, int64_t columns, size_t* bytes,
                                                   orbitsplit_error* error) {
    return guarded(error, [&] { needed(bytes, "bytes") = size_of(product_scratch_bytes(inputs, columns)); });
}

orbitsplit_status orbitsplit_multiply(const orbitsplit_weight_matrix* matrix, const float* x, int64_t inputs,
                                      const orbitsplit_execution* execution, void* scratch,
                                      size_t scratch_bytes, float* y, orbitsplit_error* error) {
    return guarded(error, [&] {
        const WeightMatrix found = matrix_of(matrix);
        quantized_bytes(found.format, found.rows, found.columns);
        const std::size_t rows_of_x =
            count_of(inputs, found.columns) / static_cast<std::size_t>(found.columns);
        if (found.rows > 0 &&
            rows_of_x > std::numeric_limits<std::int64_t>::max() / 4 / static_cast<std::uint64_t>(found.rows))
            throw std::invalid_argument("inputs is " + std::to_string(inputs) +
                                        ", y would have 2^63 bytes or more");
        multiply(found, array_of(x, rows_of_x * static_cast<std::size_t>(found.columns), "x"), inputs,
                 array_of(y, rows_of_x * static_cast<std::size_t>(found.rows), "y"),
                 memory_of(scratch, scratch_bytes, "scratch"), execution_of(execution));
    });
}
}
