#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <span>
#include <vector>

#include "bindings.hpp"
#include "orbitsplit/codec.hpp"

namespace py = pybind11;

namespace {

// The bytes of any contiguous object, without a copy, held for as long as this lives.
class ByteView {
  public:
    explicit ByteView(const py::object& object) {
        if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    }
    ~ByteView() { PyBuffer_Release(&buffer_); }
    ByteView(const ByteView&) = delete;
    ByteView& operator=(const ByteView&) = delete;

    std::span<const std::byte> bytes() const {
        return {static_cast<const std::byte*>(buffer_.buf), static_cast<std::size_t>(buffer_.len)};
    }

  private:
    Py_buffer buffer_{};
};

orbitsplit::Codec codec_of(int kind, std::int32_t group, double keep) {
    return {.kind = static_cast<orbitsplit::CodecKind>(kind), .group = group, .keep = keep};
}

std::uint64_t frame_bytes(int dtype, const std::vector<std::int64_t>& shape, int kind, std::int32_t group,
                          double keep) {
    return orbitsplit::frame_bytes(static_cast<orbitsplit::DType>(dtype), shape, codec_of(kind, group, keep));
}

py::bytes encode(const py::object& data, int dtype, const std::vector<std::int64_t>& shape, int kind,
                 std::int32_t group, double keep) {
    const ByteView view(data);
    const std::uint64_t bound = frame_bytes(dtype, shape, kind, group, keep);
    PyObject* frame = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bound));
    if (frame == nullptr) throw py::error_already_set();
    auto owner = py::reinterpret_steal<py::object>(frame);
    std::size_t size = 0;
    {
        const std::span out(reinterpret_cast<std::byte*>(PyBytes_AS_STRING(frame)), bound);
        const py::gil_scoped_release release;
        size = orbitsplit::compress_into(out, view.bytes(), static_cast<orbitsplit::DType>(dtype), shape,
                                         codec_of(kind, group, keep));
    }
    frame = owner.release().ptr();
    // On failure this frees the bytes and sets `frame` to null.
    if (_PyBytes_Resize(&frame, static_cast<Py_ssize_t>(size)) != 0) throw py::error_already_set();
    return py::reinterpret_steal<py::bytes>(frame);
}

py::tuple decode(const py::object& frame, std::uint64_t max_bytes) {
    const ByteView view(frame);
    const orbitsplit::Limits limits{.max_bytes = max_bytes};
    const orbitsplit::FrameInfo info = orbitsplit::inspect(view.bytes(), limits);
    py::array_t<std::uint8_t> data(static_cast<py::ssize_t>(info.data_bytes()));
    {
        const std::span out(reinterpret_cast<std::byte*>(data.mutable_data()), info.data_bytes());
        const py::gil_scoped_release release;
        orbitsplit::decompress_into(out, view.bytes(), limits);
    }
    return py::make_tuple(static_cast<int>(info.dtype), py::tuple(py::cast(info.shape)), std::move(data));
}

std::uint32_t crc32c(const py::object& data) {
    const ByteView view(data);
    const py::gil_scoped_release release;
    return orbitsplit::crc32c(view.bytes());
}

}  // namespace

void bind_codec(py::module_& m) {
    m.def("frame_bytes", &frame_bytes, py::arg("dtype"), py::arg("shape"), py::arg("codec"), py::arg("group"),
          py::arg("keep"));
    m.def("encode", &encode, py::arg("data"), py::arg("dtype"), py::arg("shape"), py::arg("codec"),
          py::arg("group"), py::arg("keep"));
    m.def("decode", &decode, py::arg("frame"), py::arg("max_bytes"));
    m.def("crc32c", &crc32c, py::arg("data"));
    m.def("isa", &orbitsplit::isa);
    m.def("isas", &orbitsplit::isas);
    m.def("set_isa", &orbitsplit::set_isa, py::arg("name"));
}
