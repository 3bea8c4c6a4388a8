#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "array_memory.hpp"
#include "bindings.hpp"
#include "byte_view.hpp"
#include "orbitsplit/encoder.hpp"
#include "unlocked.hpp"

namespace py = pybind11;

namespace {

using orbitsplit::CalibratedCodec;
using orbitsplit::Decoder;
using orbitsplit::DType;
using orbitsplit::Encoder;
using Shape = std::vector<std::int64_t>;

// Encodes into its own memory, a bytearray that cannot be resized while the view exists. As DecoderInto, it is for one
// thread: orbitsplit.Encoder has one for each.
class EncoderInto {
  public:
    EncoderInto(int dtype, const Shape& shape, int kind, std::int32_t group, double keep, int threads)
        : EncoderInto(dtype, shape,
                      orbitsplit::Codec{
                          .kind = static_cast<orbitsplit::CodecKind>(kind), .group = group, .keep = keep},
                      threads) {}

    // The codec must live as long as this.
    EncoderInto(int dtype, const Shape& shape, const CalibratedCodec& codec, int threads)
        : EncoderInto(static_cast<DType>(dtype), shape, threads,
                      Encoder(static_cast<DType>(dtype), shape, codec, threads)) {}

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
    EncoderInto(int dtype, const Shape& shape, const orbitsplit::Codec& codec, int threads)
        : EncoderInto(static_cast<DType>(dtype), shape, threads,
                      Encoder(static_cast<DType>(dtype), shape, codec, threads)) {}

    EncoderInto(DType dtype, Shape shape, int threads, Encoder encoder)
        : dtype_(dtype),
          shape_(std::move(shape)),
          threads_(threads),
          encoder_(std::move(encoder)),
          frame_(new_bytearray(encoder_.frame_bytes())),
          memory_(frame_, Access::write) {}

    // Not by PyByteArray_FromStringAndSize: where memory is short it also prints a SystemError (CPython up to 3.12).
    static py::object new_bytearray(std::uint64_t bytes) {
        return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyByteArray_Type))(bytes);
    }

    py::object encode_span(std::span<const std::byte> data) {
        const std::size_t size = unlocked(data.size(), threads_, [&](const orbitsplit::Execution& execution) {
            return encoder_.encode(memory_.memory(), data, execution.stop_requested);
        });
        // A new view for each frame, because the caller may release it.
        auto view = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(frame_.ptr()));
        if (!view) throw py::error_already_set();
        return size == memory_.bytes().size() ? view : view[py::slice(0, static_cast<py::ssize_t>(size), 1)];
    }

    DType dtype_;
    Shape shape_;
    int threads_;
    Encoder encoder_;
    py::object frame_;
    ByteView memory_;
};

// Decodes into the memory of one array. The codec must live as long as this.
class DecoderInto {
  public:
    DecoderInto(int dtype, const Shape& shape, const py::object& array, const CalibratedCodec* codec,
                int threads)
        : memory_(array, Access::write),
          decoder_(decoder_of(static_cast<DType>(dtype), shape, codec, threads)),
          threads_(threads) {}

    void decode(py::handle frame) {
        const ByteView view(frame);
        unlocked(memory_.bytes().size(), threads_, [&](const orbitsplit::Execution& execution) {
            decoder_.decode(memory_.memory(), view.bytes(), execution.stop_requested);
        });
    }

  private:
    static Decoder decoder_of(DType dtype, const Shape& shape, const CalibratedCodec* codec, int threads) {
        return codec != nullptr ? Decoder(dtype, shape, *codec, threads) : Decoder(dtype, shape, threads);
    }

    ByteView memory_;
    Decoder decoder_;
    int threads_;
};

}  // namespace

void bind_encoder(py::module_& m) {
    // An ordinary class, as in the stub.
    const py::metaclass plain(reinterpret_cast<PyObject*>(&PyType_Type));
    py::class_<EncoderInto>(m, "Encoder", plain)
        .def(py::init<int, Shape, int, std::int32_t, double, int>(), py::arg("dtype"), py::arg("shape"),
             py::arg("codec"), py::arg("group"), py::arg("keep"), py::arg("threads"))
        .def(py::init<int, Shape, const CalibratedCodec&, int>(), py::arg("dtype"), py::arg("shape"),
             py::arg("codec"), py::arg("threads"), py::keep_alive<1, 4>())
        .def("encode", &EncoderInto::encode, py::arg("x"))
        .def("encode_bytes", &EncoderInto::encode_bytes, py::arg("data"));
    py::class_<DecoderInto>(m, "Decoder", plain)
        .def(py::init<int, Shape, const py::object&, const CalibratedCodec*, int>(), py::arg("dtype"),
             py::arg("shape"), py::arg("array"), py::arg("codec"), py::arg("threads"), py::keep_alive<1, 5>())
        .def("decode", &DecoderInto::decode, py::arg("frame"));
}
