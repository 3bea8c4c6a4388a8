// Arrays and a JSON document in one .safetensors file, as _io/tensor_file.py writes them: untrusted bytes give the file or
// std::invalid_argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "c_api/json.hpp"

namespace orbitsplit::c_api {

struct Tensor {
    std::string dtype;  // "F32" ...
    std::vector<std::uint64_t> shape;
    std::span<const std::byte> bytes;  // of the file, at any address
};

struct TensorFile {
    std::map<std::string, Tensor> tensors;
    Json document;
};

// The checksums of document and arrays are verified. The result refers to `bytes`.
TensorFile read_tensor_file(std::span<const std::byte> bytes);

}  // namespace orbitsplit::c_api
