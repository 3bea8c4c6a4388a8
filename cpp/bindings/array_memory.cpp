#include "array_memory.hpp"

#include <pybind11/numpy.h>

#include <algorithm>

#include "dlpack.hpp"

namespace py = pybind11;

namespace {

using orbitsplit::DType;
using Memory = std::optional<std::span<const std::byte>>;

std::size_t count_bytes(DType dtype, std::span<const std::int64_t> shape) {
    std::size_t bytes = orbitsplit::item_bytes(dtype);
    for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
    return bytes;
}

bool is_native(const py::array& array, DType dtype) {
    constexpr int float32_number = 11;  // of NumPy's C API
    constexpr int float16_number = 23;
    const py::dtype found = array.dtype();
    const int wanted = dtype == DType::float32 ? float32_number : float16_number;
    // NumPy has no bfloat16; it denotes the native byte order by '='.
    return dtype != DType::bfloat16 && found.num() == wanted && found.byteorder() == '=';
}

Memory memory_of_array(const py::array& array, DType dtype, std::span<const std::int64_t> shape) {
    const bool is_expected = static_cast<std::size_t>(array.ndim()) == shape.size() &&
                             std::equal(shape.begin(), shape.end(), array.shape()) &&
                             (array.flags() & py::array::c_style) != 0 && is_native(array, dtype);
    if (!is_expected) return std::nullopt;
    return Memory({static_cast<const std::byte*>(array.data()), count_bytes(dtype, shape)});
}

bool is_contiguous(const dlpack::Tensor& tensor) {
    std::int64_t stride = 1;
    for (std::int32_t axis = tensor.ndim; tensor.strides != nullptr && axis-- > 0;) {
        if (tensor.shape[axis] == 0) return true;
        if (tensor.shape[axis] > 1 && tensor.strides[axis] != stride) return false;
        stride *= tensor.shape[axis];
    }
    return true;
}

bool has_type(const dlpack::Tensor& tensor, DType dtype) {
    const std::uint8_t code = dtype == DType::bfloat16 ? dlpack::bfloat_code : dlpack::float_code;
    return tensor.type_code == code && tensor.type_bits == 8 * orbitsplit::item_bytes(dtype) &&
           tensor.type_lanes == 1;
}

const dlpack::ExchangeTable* exchange_table(py::handle tensor) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
    static PyObject* const name = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
    const auto capsule = py::reinterpret_steal<py::object>(PyObject_GetAttr(type, name));
    void* pointer = capsule ? PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api") : nullptr;
    if (pointer == nullptr) PyErr_Clear();
    const auto* table = static_cast<const dlpack::ExchangeTable*>(pointer);
    while (table != nullptr && table->major_version != dlpack::known_major_version) table = table->older;
    return table != nullptr && table->tensor_from_py_object != nullptr ? table : nullptr;
}

// PyTorch also exports the memory of tensors whose negation is lazy: their values are not the stored ones.
bool has_stored_values(py::handle tensor) {
    static PyObject* const name = PyUnicode_InternFromString("is_neg");
    const auto is_negated = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), name));
    if (!is_negated) PyErr_Clear();
    return is_negated.is(py::handle(Py_False));
}

Memory memory_of_tensor(py::handle object, DType dtype, std::span<const std::int64_t> shape) {
    const dlpack::ExchangeTable* table = exchange_table(object);
    if (table == nullptr) return std::nullopt;
    dlpack::Tensor tensor;
    if (table->tensor_from_py_object(object.ptr(), &tensor) != 0) {
        PyErr_Clear();
        return std::nullopt;
    }
    const std::size_t bytes = count_bytes(dtype, shape);
    const bool is_expected = tensor.device_type == dlpack::cpu_device && has_type(tensor, dtype) &&
                             static_cast<std::size_t>(tensor.ndim) == shape.size() &&
                             std::equal(shape.begin(), shape.end(), tensor.shape) && is_contiguous(tensor) &&
                             (tensor.data != nullptr || bytes == 0) && has_stored_values(object);
    if (!is_expected) return std::nullopt;
    return Memory({static_cast<const std::byte*>(tensor.data) + tensor.byte_offset, bytes});
}

}  // namespace

Memory array_memory(py::handle array, DType dtype, std::span<const std::int64_t> shape) {
    // Not subclasses: there may be more to their values, such as a mask.
    if (Py_TYPE(array.ptr()) == py::detail::npy_api::get().PyArray_Type_)
        return memory_of_array(py::reinterpret_borrow<py::array>(array), dtype, shape);
    return memory_of_tensor(array, dtype, shape);
}
