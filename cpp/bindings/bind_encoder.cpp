#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <utility>
#include <variant>
#include <vector>

#include "array_memory.hpp"
#include "bindings.hpp"
#include "byte_view.hpp"
#include "orbitsplit/calibrated.hpp"
#include "orbitsplit/codec.hpp"
#include "unlocked.hpp"

namespace py = pybind11;

namespace {

using orbitsplit::CalibratedCodec;
using orbitsplit::DType;
using Shape = std::vector<std::int64_t>;

// Encodes arrays of one dtype and shape into its own memory, a bytearray that cannot be resized while the view exists.
// As Decoder, it is for one thread: orbitsplit.Encoder has one for each.
class Encoder {
  public:
    Encoder(int dtype, Shape shape, int kind, std::int32_t group, double keep, int threads)
        : Encoder(static_cast<DType>(dtype), std::move(shape),
                  orbitsplit::Codec{
                      .kind = static_cast<orbitsplit::CodecKind>(kind), .group = group, .keep = keep},
                  threads) {}

    // The codec must live as long as this.
    Encoder(int dtype, Shape shape, const CalibratedCodec& codec, int threads)
        : Encoder(static_cast<DType>(dtype), std::move(shape), &codec, threads) {}

    // Returns None if `x` cannot be read in place, or is not an array of this dtype and shape.
    py::object encode(py::handle x) {
        const auto data = array_memory(x, dtype_, shape_);
        return data ? encode_span(*data) : py::none();
    }

    py::object encode_bytes(py::handle data) {
        const ByteView view(data);
        return encode_span(view.bytes());
    }

  private:
    using AnyCodec = std::variant<orbitsplit::Codec, const CalibratedCodec*>;

    Encoder(DType dtype, Shape shape, AnyCodec codec, int threads)
        : dtype_(dtype),
          shape_(std::move(shape)),
          codec_(codec),
          threads_(threads),
          frame_(new_bytearray(bound())),
          memory_(frame_, Access::write) {}

    // Not by PyByteArray_FromStringAndSize: where memory is short it also prints a SystemError (CPython up to 3.12).
    static py::object new_bytearray(std::uint64_t bytes) {
        return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyByteArray_Type))(bytes);
    }

    std::uint64_t bound() const {
        if (const auto* const* calibrated = std::get_if<const CalibratedCodec*>(&codec_))
            return orbitsplit::frame_bytes(dtype_, shape_, **calibrated);
        return orbitsplit::frame_bytes(dtype_, shape_, std::get<orbitsplit::Codec>(codec_));
    }

    std::size_t compress(std::span<const std::byte> data, const orbitsplit::Execution& execution) const {
        if (const auto* const* calibrated = std::get_if<const CalibratedCodec*>(&codec_))
            return orbitsplit::compress_into(memory_.memory(), data, dtype_, shape_, **calibrated, execution);
        return orbitsplit::compress_into(memory_.memory(), data, dtype_, shape_,
                                         std::get<orbitsplit::Codec>(codec_), execution);
    }

    py::object encode_span(std::span<const std::byte> data) {
        const std::size_t size = unlocked(data.size(), threads_, [&](const orbitsplit::Execution& execution) {
            return compress(data, execution);
        });
        // A new view for each frame, because the caller may release it.
        auto view = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(frame_.ptr()));
        if (!view) throw py::error_already_set();
        return size == memory_.bytes().size() ? view : view[py::slice(0, static_cast<py::ssize_t>(size), 1)];
    }

    DType dtype_;
    Shape shape_;
    AnyCodec codec_;
    int threads_;
    py::object frame_;
    ByteView memory_;
};

// Decodes frames of one dtype and shape into one array. The codec must live as long as this.
class Decoder {
  public:
    Decoder(int dtype, Shape shape, const py::object& array, const CalibratedCodec* codec, int threads)
        : dtype_(static_cast<DType>(dtype)),
          shape_(std::move(shape)),
          memory_(array, Access::write),
          codec_(codec),
          threads_(threads) {}

    void decode(py::handle frame) {
        const ByteView view(frame);
        unlocked(memory_.bytes().size(), threads_, [&](const orbitsplit::Execution& execution) {
            if (codec_ != nullptr)
                orbitsplit::decompress_into(memory_.memory(), dtype_, shape_, view.bytes(), *codec_,
                                            execution);
            else
                orbitsplit::decompress_into(memory_.memory(), dtype_, shape_, view.bytes(), execution);
        });
    }

  private:
    DType dtype_;
    Shape shape_;
    ByteView memory_;
    const CalibratedCodec* codec_;
    int threads_;
};

}  // namespace

void bind_encoder(py::module_& m) {
    // An ordinary class, as in the stub.
    const py::metaclass plain(reinterpret_cast<PyObject*>(&PyType_Type));
    py::class_<Encoder>(m, "Encoder", plain)
        .def(py::init<int, Shape, int, std::int32_t, double, int>(), py::arg("dtype"), py::arg("shape"),
             py::arg("codec"), py::arg("group"), py::arg("keep"), py::arg("threads"))
        .def(py::init<int, Shape, const CalibratedCodec&, int>(), py::arg("dtype"), py::arg("shape"),
             py::arg("codec"), py::arg("threads"), py::keep_alive<1, 4>())
        .def("encode", &Encoder::encode, py::arg("x"))
        .def("encode_bytes", &Encoder::encode_bytes, py::arg("data"));
    py::class_<Decoder>(m, "Decoder", plain)
        .def(py::init<int, Shape, const py::object&, const CalibratedCodec*, int>(), py::arg("dtype"),
             py::arg("shape"), py::arg("array"), py::arg("codec"), py::arg("threads"), py::keep_alive<1, 5>())
        .def("decode", &Decoder::decode, py::arg("frame"));
}
