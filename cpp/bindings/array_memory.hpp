// Arrays and tensors read in place, with an overhead small enough for one row of a decode step.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "orbitsplit/frame.hpp"

// The memory of `array` if it is a C-contiguous NumPy array (of no subclass) or CPU torch tensor of exactly this dtype and shape, else
// nothing: the caller then reports why, or reads the array through its buffer. Valid as long as `array` is.
std::optional<std::span<const std::byte>> array_memory(pybind11::handle array, orbitsplit::DType dtype,
                                                       std::span<const std::int64_t> shape);
