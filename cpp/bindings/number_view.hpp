// Numbers in the memory of contiguous Python objects, and formats of weights by their numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "byte_view.hpp"
#include "orbitsplit/weights.hpp"

// Numbers are read where they are, so they must be where the processor expects them.
template <class T>
void check_aligned(const void* memory, std::size_t bytes, const char* name) {
    if (reinterpret_cast<std::uintptr_t>(memory) % alignof(T) != 0 || bytes % sizeof(T) != 0)
        throw std::invalid_argument(std::string(name) + " is not aligned in memory");
}

template <class T>
std::span<const T> numbers(const ByteView& view, const char* name) {
    const std::span<const std::byte> bytes = view.bytes();
    check_aligned<T>(bytes.data(), bytes.size(), name);
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
}

inline std::span<float> writable(const ByteView& view, const char* name) {
    const std::span<std::byte> bytes = view.memory();
    check_aligned<float>(bytes.data(), bytes.size(), name);
    return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
}

inline orbitsplit::WeightFormat weight_format(int format) {
    if (format < 0 || format > 2)
        throw std::invalid_argument("weight format " + std::to_string(format) +
                                    " is unknown; 0 is int8, 1 is int4, 2 is int5");
    return static_cast<orbitsplit::WeightFormat>(format);
}
