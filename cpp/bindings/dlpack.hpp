// The part of DLPack's ABI that reads a tensor in place: the exchange table, which PyTorch has since 2.10.
//
// Declared here so that a build needs neither PyTorch nor DLPack. Names and layout are those of dlpack.h, version 1
// (https://github.com/dmlc/dlpack); functions that are not called are plain pointers.
#pragma once

#include <cstdint>

namespace dlpack {

inline constexpr std::uint32_t known_major_version = 1;
inline constexpr std::int32_t cpu_device = 1;
inline constexpr std::uint8_t float_code = 2;
inline constexpr std::uint8_t bfloat_code = 4;

struct Tensor {
    void* data;
    std::int32_t device_type;
    std::int32_t device_id;
    std::int32_t ndim;
    std::uint8_t type_code;
    std::uint8_t type_bits;
    std::uint16_t type_lanes;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null where the tensor is contiguous
    std::uint64_t byte_offset;
};

struct ExchangeTable {
    std::uint32_t major_version;
    std::uint32_t minor_version;
    ExchangeTable* older;
    void* managed_tensor_allocator;
    void* managed_tensor_from_py_object;
    void* managed_tensor_to_py_object;
    int (*tensor_from_py_object)(void* object, Tensor* out);  // -1 with a Python exception; may be null
    void* current_work_stream;
};

}  // namespace dlpack
