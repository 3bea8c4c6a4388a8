// Elements of an activation in memory, by dtype. Memory of a caller may be unaligned: loads and stores use memcpy,
// which compilers turn into plain or vector moves.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "orbitsplit/frame.hpp"
#include "support/float_bits.hpp"

namespace orbitsplit::elements {

template <class T>
T load(const std::byte* bytes, std::size_t i) {
    T value;
    std::memcpy(&value, bytes + i * sizeof value, sizeof value);
    return value;
}

template <class T>
void store(std::byte* bytes, std::size_t i, T value) {
    std::memcpy(bytes + i * sizeof value, &value, sizeof value);
}

// One type per dtype: exact conversion to float, rounding one from it, and 31-bit keys that rank magnitudes.
struct Float32 {
    using Bits = std::uint32_t;
    static constexpr float largest = std::numeric_limits<float>::max();
    static constexpr std::uint32_t infinite_key = float_bits::infinity;
    static float to_single(Bits bits) { return std::bit_cast<float>(bits); }
    static Bits from_single(float value) { return std::bit_cast<Bits>(value); }
    static std::uint32_t key(Bits bits) { return bits & float_bits::magnitude; }
};

struct Float16 {
    using Bits = std::uint16_t;
    static constexpr float largest = float_bits::largest_half;
    static constexpr std::uint32_t infinite_key = 0x7C000000;
    static float to_single(Bits bits) { return float_bits::single_from_half(bits); }
    static Bits from_single(float value) { return float_bits::half_from_single(value); }
    static std::uint32_t key(Bits bits) { return (std::uint32_t{bits} & 0x7FFF) << 16; }
};

struct BFloat16 {
    using Bits = std::uint16_t;
    static constexpr float largest = float_bits::largest_bf16;
    static constexpr std::uint32_t infinite_key = float_bits::infinity;
    static float to_single(Bits bits) { return float_bits::single_from_bf16(bits); }
    static Bits from_single(float value) { return float_bits::bf16_from_single(value); }
    static std::uint32_t key(Bits bits) { return (std::uint32_t{bits} & 0x7FFF) << 16; }
};

template <class Element>
float load_single(const std::byte* bytes, std::size_t i) {
    return Element::to_single(load<typename Element::Bits>(bytes, i));
}

// Finite values beyond the dtype's range become its largest value.
template <class Element>
float clamp(float value) {
    return float_bits::clamp(value, Element::largest);
}

// Calls `work` with the element type of `dtype`.
template <class Work>
auto visit(DType dtype, Work work) {
    switch (dtype) {
        case DType::float16:
            return work(Float16{});
        case DType::bfloat16:
            return work(BFloat16{});
        case DType::float32:
            break;
    }
    return work(Float32{});
}

}  // namespace orbitsplit::elements
