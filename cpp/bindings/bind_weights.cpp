#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "byte_view.hpp"
#include "orbitsplit/weights.hpp"
#include "unlocked.hpp"

namespace py = pybind11;

namespace {

using orbitsplit::Execution;

orbitsplit::WeightFormat format_of(int format) {
    if (format != 0 && format != 1)
        throw std::invalid_argument("weight format " + std::to_string(format) +
                                    " is unknown; 0 is int8, 1 is int4");
    return static_cast<orbitsplit::WeightFormat>(format);
}

// Numbers are read where they are, so they must be where the processor expects them.
template <class T>
void check_aligned(const void* memory, std::size_t bytes, const char* name) {
    if (reinterpret_cast<std::uintptr_t>(memory) % alignof(T) != 0 || bytes % sizeof(T) != 0)
        throw std::invalid_argument(std::string(name) + " is not aligned in memory");
}

template <class T>
std::span<const T> numbers(const ByteView& view, const char* name) {
    const std::span<const std::byte> bytes = view.bytes();
    check_aligned<T>(bytes.data(), bytes.size(), name);
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
}

std::span<float> writable(const ByteView& view, const char* name) {
    const std::span<std::byte> bytes = view.memory();
    check_aligned<float>(bytes.data(), bytes.size(), name);
    return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
}

std::uint64_t quantized_bytes(int format, std::int64_t rows, std::int64_t columns) {
    return orbitsplit::quantized_bytes(format_of(format), rows, columns);
}

void quantize(const py::object& values, int format, std::int64_t rows, std::int64_t columns,
              const py::object& out, const py::object& importance, int threads) {
    const ByteView view(values);
    const ByteView bytes(out, Access::write);
    const ByteView weight(importance);
    const std::span<const float> source = numbers<float>(view, "values");
    const std::span<const float> of_columns = numbers<float>(weight, "importance");
    unlocked(view.bytes().size(), threads, [&](const Execution& execution) {
        orbitsplit::quantize(format_of(format), source, rows, columns, bytes.memory(), of_columns, execution);
    });
}

void dequantize(const py::object& data, int format, std::int64_t rows, std::int64_t columns,
                std::int64_t first, const py::object& out, int threads) {
    const ByteView view(data);
    const ByteView array(out, Access::write);
    const std::span<float> values = writable(array, "out");
    unlocked(array.bytes().size(), threads, [&](const Execution& execution) {
        orbitsplit::dequantize({format_of(format), rows, columns, view.bytes()}, first, values, execution);
    });
}

void dequantize_rows(const py::object& data, int format, std::int64_t rows, std::int64_t columns,
                     const py::object& indices, const py::object& out, int threads) {
    const ByteView view(data);
    const ByteView wanted(indices);
    const ByteView array(out, Access::write);
    const std::span<const std::int64_t> of_rows = numbers<std::int64_t>(wanted, "indices");
    const std::span<float> values = writable(array, "out");
    unlocked(array.bytes().size(), threads, [&](const Execution& execution) {
        orbitsplit::dequantize_rows({format_of(format), rows, columns, view.bytes()}, of_rows, values,
                                    execution);
    });
}

void multiply(const py::object& data, int format, std::int64_t rows, std::int64_t columns,
              const py::object& x, std::int64_t inputs, const py::object& out, int threads) {
    const ByteView view(data);
    const ByteView of_x(x);
    const ByteView array(out, Access::write);
    const std::span<const float> values = numbers<float>(of_x, "x");
    const std::span<float> y = writable(array, "out");
    const std::uint64_t bytes = orbitsplit::product_scratch_bytes(inputs, columns);
    const auto scratch = std::make_unique_for_overwrite<std::byte[]>(bytes);
    unlocked(view.bytes().size(), threads, [&](const Execution& execution) {
        orbitsplit::multiply({format_of(format), rows, columns, view.bytes()}, values, inputs, y,
                             {scratch.get(), bytes}, execution);
    });
}

}  // namespace

void bind_weights(py::module_& m) {
    m.def("quantized_bytes", &quantized_bytes, py::arg("format"), py::arg("rows"), py::arg("columns"));
    m.def("quantize", &quantize, py::arg("values"), py::arg("format"), py::arg("rows"), py::arg("columns"),
          py::arg("out"), py::arg("importance"), py::arg("threads") = 1);
    m.def("dequantize", &dequantize, py::arg("data"), py::arg("format"), py::arg("rows"), py::arg("columns"),
          py::arg("first"), py::arg("out"), py::arg("threads") = 1);
    m.def("dequantize_rows", &dequantize_rows, py::arg("data"), py::arg("format"), py::arg("rows"),
          py::arg("columns"), py::arg("indices"), py::arg("out"), py::arg("threads") = 1);
    m.def("multiply", &multiply, py::arg("data"), py::arg("format"), py::arg("rows"), py::arg("columns"),
          py::arg("x"), py::arg("inputs"), py::arg("out"), py::arg("threads") = 1);
}
