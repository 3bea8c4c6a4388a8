#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <vector>

#include "bindings.hpp"
#include "byte_view.hpp"
#include "frame_object.hpp"
#include "orbitsplit/codec.hpp"
#include "unlocked.hpp"

namespace py = pybind11;

namespace {

orbitsplit::Codec codec_of(int kind, std::int32_t group, double keep) {
    return {.kind = static_cast<orbitsplit::CodecKind>(kind), .group = group, .keep = keep};
}

std::uint64_t frame_bytes(int dtype, const std::vector<std::int64_t>& shape, int kind, std::int32_t group,
                          double keep) {
    return orbitsplit::frame_bytes(static_cast<orbitsplit::DType>(dtype), shape, codec_of(kind, group, keep));
}

py::bytes encode(const py::object& data, int dtype, const std::vector<std::int64_t>& shape, int kind,
                 std::int32_t group, double keep, int threads) {
    const ByteView view(data);
    const std::uint64_t bound = frame_bytes(dtype, shape, kind, group, keep);
    return bytes_of_frame(bound, [&](std::span<std::byte> out) {
        return unlocked(view.bytes().size(), threads, [&](const orbitsplit::Execution& execution) {
            return orbitsplit::compress_into(out, view.bytes(), static_cast<orbitsplit::DType>(dtype), shape,
                                             codec_of(kind, group, keep), execution);
        });
    });
}

std::size_t encode_into(const py::object& data, int dtype, const std::vector<std::int64_t>& shape, int kind,
                        std::int32_t group, double keep, const py::object& out, int threads) {
    const ByteView view(data);
    const ByteView frame(out, Access::write);
    return unlocked(view.bytes().size(), threads, [&](const orbitsplit::Execution& execution) {
        return orbitsplit::compress_into(frame.memory(), view.bytes(), static_cast<orbitsplit::DType>(dtype),
                                         shape, codec_of(kind, group, keep), execution);
    });
}

py::tuple decode(const py::object& frame, std::optional<std::uint64_t> max_bytes, int threads) {
    const ByteView view(frame);
    const orbitsplit::Limits limits{.max_bytes = max_bytes};
    const orbitsplit::FrameInfo info = orbitsplit::inspect(view.bytes(), limits);
    py::array_t<std::uint8_t> data(static_cast<py::ssize_t>(info.data_bytes()));
    const std::span out(reinterpret_cast<std::byte*>(data.mutable_data()), info.data_bytes());
    unlocked(out.size(), threads, [&](const orbitsplit::Execution& execution) {
        orbitsplit::decompress_into(out, view.bytes(), limits, execution);
    });
    return py::make_tuple(static_cast<int>(info.dtype), py::tuple(py::cast(info.shape)), std::move(data));
}

void decode_into(const py::object& frame, int dtype, const std::vector<std::int64_t>& shape,
                 const py::object& out, int threads) {
    const ByteView view(frame);
    const ByteView array(out, Access::write);
    unlocked(array.bytes().size(), threads, [&](const orbitsplit::Execution& execution) {
        orbitsplit::decompress_into(array.memory(), static_cast<orbitsplit::DType>(dtype), shape,
                                    view.bytes(), execution);
    });
}

std::uint32_t crc32c(const py::object& data) {
    const ByteView view(data);
    return unlocked(view.bytes().size(), 1,
                    [&](const orbitsplit::Execution&) { return orbitsplit::crc32c(view.bytes()); });
}

}  // namespace

void bind_codec(py::module_& m) {
    m.def("frame_bytes", &frame_bytes, py::arg("dtype"), py::arg("shape"), py::arg("codec"), py::arg("group"),
          py::arg("keep"));
    m.def("encode", &encode, py::arg("data"), py::arg("dtype"), py::arg("shape"), py::arg("codec"),
          py::arg("group"), py::arg("keep"), py::arg("threads") = 1);
    m.def("encode_into", &encode_into, py::arg("data"), py::arg("dtype"), py::arg("shape"), py::arg("codec"),
          py::arg("group"), py::arg("keep"), py::arg("out"), py::arg("threads") = 1);
    m.def("decode", &decode, py::arg("frame"), py::arg("max_bytes"), py::arg("threads") = 1);
    m.def("decode_into", &decode_into, py::arg("frame"), py::arg("dtype"), py::arg("shape"), py::arg("out"),
          py::arg("threads") = 1);
    m.def("crc32c", &crc32c, py::arg("data"));
    m.def("isa", &orbitsplit::isa);
    m.def("isas", &orbitsplit::isas);
    m.def("set_isa", &orbitsplit::set_isa, py::arg("name"));
}
