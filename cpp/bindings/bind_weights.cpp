#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <span>

#include "bindings.hpp"
#include "byte_view.hpp"
#include "number_view.hpp"
#include "orbitsplit/weights.hpp"
#include "unlocked.hpp"

namespace py = pybind11;

namespace {

using orbitsplit::Execution;

std::uint64_t quantized_bytes(int format, std::int64_t rows, std::int64_t columns) {
    return orbitsplit::quantized_bytes(weight_format(format), rows, columns);
}

void quantize(const py::object& values, int format, std::int64_t rows, std::int64_t columns,
              const py::object& out, const py::object& importance, int threads) {
    const ByteView view(values);
    const ByteView bytes(out, Access::write);
    const ByteView weight(importance);
    const std::span<const float> source = numbers<float>(view, "values");
    const std::span<const float> of_columns = numbers<float>(weight, "importance");
    unlocked(view.bytes().size(), threads, [&](const Execution& execution) {
        orbitsplit::quantize(weight_format(format), source, rows, columns, bytes.memory(), of_columns,
                             execution);
    });
}

void dequantize(const py::object& data, int format, std::int64_t rows, std::int64_t columns,
                std::int64_t first, const py::object& out, int threads) {
    const ByteView view(data);
    const ByteView array(out, Access::write);
    const std::span<float> values = writable(array, "out");
    unlocked(array.bytes().size(), threads, [&](const Execution& execution) {
        orbitsplit::dequantize({weight_format(format), rows, columns, view.bytes()}, first, values,
                               execution);
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
        orbitsplit::dequantize_rows({weight_format(format), rows, columns, view.bytes()}, of_rows, values,
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
        orbitsplit::multiply({weight_format(format), rows, columns, view.bytes()}, values, inputs, y,
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
