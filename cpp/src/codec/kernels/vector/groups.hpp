// What the group codecs of all instruction sets have in common: rows, groups and remainders. All in an anonymous
// namespace, so that each file has its own copy.
//
// A `Set` provides, for its element types and 8 or 4 bits,
//   quantise_group<Element, bits>(in, count, scale, codes)      false if a value is not finite
//   dequantise_group<Element, bits>(codes, count, scale, out)
#pragma once

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

constexpr std::uint32_t infinity_bits = 0x7F800000;

template <int bits>
constexpr float top_code = bits == 8 ? 127.0F : 7.0F;

// Writes the smallest bfloat16 not below max(largest / top, 2^-126) and returns its inverse.
inline float write_scale(std::uint32_t largest_bits, float top, std::byte* out) {
    const float wanted = __builtin_bit_cast(float, largest_bits) / top;
    const float scale = wanted > 0x1p-126F ? wanted : 0x1p-126F;
    const std::uint32_t rounded = (__builtin_bit_cast(std::uint32_t, scale) + 0xFFFF) >> 16;
    const auto bits = static_cast<std::uint16_t>(rounded);
    __builtin_memcpy(out, &bits, sizeof bits);
    return 1.0F / __builtin_bit_cast(float, rounded << 16);
}

template <class Set, class Element, int bits>
bool quantise(const std::byte* in, layout::Rows rows, std::size_t group, std::byte* scales,
              std::byte* codes) {
    for (std::size_t row = 0; row < rows.count; ++row) {
        for (std::size_t start = 0; start < rows.length; start += group, scales += 2) {
            const std::size_t count = rows.length - start < group ? rows.length - start : group;
            if (!Set::template quantise_group<Element, bits>(in + start * Element::bytes, count, scales,
                                                             codes + start * bits / 8))
                return false;
        }
        in += rows.length * Element::bytes;
        codes += (rows.length * bits + 7) / 8;
    }
    return true;
}

template <class Set, class Element, int bits>
bool dequantise(const std::byte* scales, const std::byte* codes, layout::Rows rows, std::size_t group,
                std::byte* out) {
    for (std::size_t row = 0; row < rows.count; ++row) {
        for (std::size_t start = 0; start < rows.length; start += group, scales += 2) {
            const std::size_t count = rows.length - start < group ? rows.length - start : group;
            std::uint16_t scale;
            __builtin_memcpy(&scale, scales, sizeof scale);
            if (scale < 0x0080 || scale >= 0x7F80) return false;
            Set::template dequantise_group<Element, bits>(
                codes + start * bits / 8, count, __builtin_bit_cast(float, std::uint32_t{scale} << 16),
                out + start * Element::bytes);
        }
        out += rows.length * Element::bytes;
        codes += (rows.length * bits + 7) / 8;
    }
    return true;
}

// Groups of an instruction set without masked loads and stores: whole blocks, and the remainder in a padded block.
// `Blocks` provides `block`, a number of elements, and for that many elements
//   largest_bits<Element>(in)                              the bits of the largest magnitude
//   quantise_block<Element, bits>(in, inverse, codes)
//   dequantise_block<Element, bits>(codes, scale, out)
template <class Blocks>
struct GroupsOfBlocks {
    static constexpr std::size_t block = Blocks::block;

    template <class Element, int bits>
    static bool quantise_group(const std::byte* in, std::size_t count, std::byte* scale, std::byte* codes) {
        const std::size_t whole = count / block * block;
        std::uint32_t largest = 0;
        for (std::size_t i = 0; i < whole; i += block) {
            const std::uint32_t here = Blocks::template largest_bits<Element>(in + i * Element::bytes);
            largest = here > largest ? here : largest;
        }
        alignas(32) std::byte rest[block * Element::bytes] = {};
        if (whole < count) {
            __builtin_memcpy(rest, in + whole * Element::bytes, (count - whole) * Element::bytes);
            const std::uint32_t here = Blocks::template largest_bits<Element>(rest);
            largest = here > largest ? here : largest;
        }
        if (largest >= infinity_bits) return false;
        const float inverse = write_scale(largest, top_code<bits>, scale);
        for (std::size_t i = 0; i < whole; i += block)
            Blocks::template quantise_block<Element, bits>(in + i * Element::bytes, inverse,
                                                           codes + i * bits / 8);
        if (whole < count) {
            alignas(32) std::byte last[block * bits / 8];
            Blocks::template quantise_block<Element, bits>(rest, inverse, last);
            // In a row of odd length the last high half is zero.
            if (bits == 4 && count % 2 != 0)
                last[(count - whole) / 2] =
                    static_cast<std::byte>(static_cast<unsigned char>(last[(count - whole) / 2]) & 0x0F);
            __builtin_memcpy(codes + whole * bits / 8, last, ((count - whole) * bits + 7) / 8);
        }
        return true;
    }

    template <class Element, int bits>
    static void dequantise_group(const std::byte* codes, std::size_t count, float scale, std::byte* out) {
        const std::size_t whole = count / block * block;
        for (std::size_t i = 0; i < whole; i += block)
            Blocks::template dequantise_block<Element, bits>(codes + i * bits / 8, scale,
                                                             out + i * Element::bytes);
        if (whole == count) return;
        alignas(32) std::byte last[block * bits / 8] = {};
        alignas(32) std::byte rest[block * Element::bytes];
        __builtin_memcpy(last, codes + whole * bits / 8, ((count - whole) * bits + 7) / 8);
        Blocks::template dequantise_block<Element, bits>(last, scale, rest);
        __builtin_memcpy(out + whole * Element::bytes, rest, (count - whole) * Element::bytes);
    }
};

template <class Set, class F32, class F16, class BF16>
constexpr Groups make_groups() {
    return {
        {quantise<Set, F32, 8>, quantise<Set, F16, 8>, quantise<Set, BF16, 8>},
        {quantise<Set, F32, 4>, quantise<Set, F16, 4>, quantise<Set, BF16, 4>},
        {dequantise<Set, F32, 8>, dequantise<Set, F16, 8>, dequantise<Set, BF16, 8>},
        {dequantise<Set, F32, 4>, dequantise<Set, F16, 4>, dequantise<Set, BF16, 4>},
    };
}

}  // namespace

}  // namespace orbitsplit::kernels
