#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "byte_view.hpp"
#include "frame_object.hpp"
#include "orbitsplit/calibrated.hpp"
#include "unlocked.hpp"

namespace py = pybind11;

namespace {

using orbitsplit::CalibratedCodec;
using orbitsplit::DType;
using Floats = py::array_t<float, py::array::c_style>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Shape = std::vector<std::int64_t>;

template <class Number>
std::vector<Number> numbers_of(const py::array_t<Number, py::array::c_style>& array) {
    return {array.data(), array.data() + array.size()};
}

std::vector<orbitsplit::SymbolFrequencies> tables_of(const Bytes& array) {
    std::vector<orbitsplit::SymbolFrequencies> tables(static_cast<std::size_t>(array.size()) / 256);
    for (std::size_t t = 0; t < tables.size(); ++t)
        std::copy_n(array.data() + 256 * t, 256, tables[t].begin());
    return tables;
}

CalibratedCodec make(std::uint64_t codebook, std::uint16_t cut, std::uint16_t level, const Floats& step,
                     const Floats& shift, const Floats& scale, const Floats& threshold, float rounding,
                     float shrink, std::int32_t hadamard, const Floats& matrix, const Floats& inverse,
                     const Bytes& tables, const Bytes& table_of_channel) {
    return CalibratedCodec({.key = {.codebook = codebook, .cut = cut, .level = level},
                            .step = numbers_of(step),
                            .shift = numbers_of(shift),
                            .scale = numbers_of(scale),
                            .threshold = numbers_of(threshold),
                            .rounding = rounding,
                            .shrink = shrink,
                            .hadamard = hadamard,
                            .matrix = numbers_of(matrix),
                            .inverse = numbers_of(inverse),
                            .tables = tables_of(tables),
                            .table_of_channel = numbers_of(table_of_channel)});
}

std::uint64_t frame_bytes(const CalibratedCodec& codec, int dtype, const Shape& shape) {
    return orbitsplit::frame_bytes(static_cast<DType>(dtype), shape, codec);
}

Floats inverse_of(const Floats& matrix) {
    if (matrix.ndim() != 2 || matrix.shape(0) != matrix.shape(1))
        throw std::invalid_argument("matrix must be a square array of two axes");
    const std::span<const float> given(matrix.data(), static_cast<std::size_t>(matrix.size()));
    const auto width = static_cast<std::size_t>(matrix.shape(0));
    std::vector<float> inverse;
    {
        const py::gil_scoped_release release;
        inverse = orbitsplit::inverse_of(given, width);
    }
    return Floats({matrix.shape(0), matrix.shape(1)}, inverse.data());
}

py::bytes encode(const CalibratedCodec& codec, const py::object& data, int dtype, const Shape& shape,
                 int threads) {
    const ByteView view(data);
    const std::uint64_t bound = frame_bytes(codec, dtype, shape);
    return bytes_of_frame(bound, [&](std::span<std::byte> out) {
        return unlocked(view.bytes().size(), threads, [&](const orbitsplit::Execution& execution) {
            return orbitsplit::compress_into(out, view.bytes(), static_cast<DType>(dtype), shape, codec,
                                             execution);
        });
    });
}

py::tuple decode(const CalibratedCodec& codec, const py::object& frame,
                 std::optional<std::uint64_t> max_bytes, int threads) {
    const ByteView view(frame);
    const orbitsplit::Limits limits{.max_bytes = max_bytes};
    const orbitsplit::FrameInfo info = orbitsplit::inspect(view.bytes(), limits);
    py::array_t<std::uint8_t> data(static_cast<py::ssize_t>(info.data_bytes()));
    const std::span out(reinterpret_cast<std::byte*>(data.mutable_data()), info.data_bytes());
    unlocked(out.size(), threads, [&](const orbitsplit::Execution& execution) {
        orbitsplit::decompress_into(out, view.bytes(), codec, limits, execution);
    });
    return py::make_tuple(static_cast<int>(info.dtype), py::tuple(py::cast(info.shape)), std::move(data));
}

std::size_t encode_into(const CalibratedCodec& codec, const py::object& data, int dtype, const Shape& shape,
                        const py::object& out, int threads) {
    const ByteView view(data);
    const ByteView frame(out, Access::write);
    return unlocked(view.bytes().size(), threads, [&](const orbitsplit::Execution& execution) {
        return orbitsplit::compress_into(frame.memory(), view.bytes(), static_cast<DType>(dtype), shape,
                                         codec, execution);
    });
}

void decode_into(const CalibratedCodec& codec, const py::object& frame, int dtype, const Shape& shape,
                 const py::object& out, int threads) {
    const ByteView view(frame);
    const ByteView array(out, Access::write);
    unlocked(array.bytes().size(), threads, [&](const orbitsplit::Execution& execution) {
        orbitsplit::decompress_into(array.memory(), static_cast<DType>(dtype), shape, view.bytes(), codec,
                                    execution);
    });
}

Bytes table_from_counts(const py::array_t<std::uint64_t, py::array::c_style>& counts) {
    if (counts.ndim() != 1 || counts.size() != 256)
        throw std::invalid_argument("counts has " + std::to_string(counts.size()) + " numbers in " +
                                    std::to_string(counts.ndim()) + " axes, it must have 256 in 1");
    const orbitsplit::SymbolFrequencies table =
        orbitsplit::table_from_counts(std::span<const std::uint64_t, 256>(counts.data(), 256));
    return Bytes(static_cast<py::ssize_t>(table.size()), table.data());
}

py::tuple codebook_key(const py::object& frame, std::uint64_t max_bytes) {
    const ByteView view(frame);
    const orbitsplit::FrameInfo info = orbitsplit::inspect(view.bytes(), {.max_bytes = max_bytes});
    return py::make_tuple(info.key.codebook, info.key.cut, info.key.level);
}

}  // namespace

void bind_calibrated(py::module_& m) {
    // An ordinary class, as in the stub.
    const py::metaclass plain(reinterpret_cast<PyObject*>(&PyType_Type));
    py::class_<CalibratedCodec>(m, "CalibratedCodec", plain)
        .def(py::init(&make), py::arg("codebook"), py::arg("cut"), py::arg("level"),
             py::arg("step").noconvert(), py::arg("shift").noconvert(), py::arg("scale").noconvert(),
             py::arg("threshold").noconvert(), py::arg("rounding"), py::arg("shrink"), py::arg("hadamard"),
             py::arg("matrix").noconvert(), py::arg("inverse").noconvert(), py::arg("tables").noconvert(),
             py::arg("table_of_channel").noconvert())
        .def("frame_bytes", &frame_bytes, py::arg("dtype"), py::arg("shape"))
        .def("encode", &encode, py::arg("data"), py::arg("dtype"), py::arg("shape"), py::arg("threads") = 1)
        .def("encode_into", &encode_into, py::arg("data"), py::arg("dtype"), py::arg("shape"), py::arg("out"),
             py::arg("threads") = 1)
        .def("decode_into", &decode_into, py::arg("frame"), py::arg("dtype"), py::arg("shape"),
             py::arg("out"), py::arg("threads") = 1)
        .def("decode", &decode, py::arg("frame"), py::arg("max_bytes"), py::arg("threads") = 1);
    m.def("table_from_counts", &table_from_counts, py::arg("counts").noconvert());
    m.def("inverse_of", &inverse_of, py::arg("matrix").noconvert());
    m.def("codebook_key", &codebook_key, py::arg("frame"), py::arg("max_bytes"));
}
