#include <algorithm>
#include <array>

#include "codec/kernels/elements.hpp"
#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

using elements::BFloat16;
using elements::Float16;
using elements::Float32;
using elements::load;
using elements::load_single;
using elements::store;

// Added to a float below 2^22 it leaves the nearest integer, ties to even, in the low bits: rounding and conversion in
// one operation, the same on every machine.
constexpr float rounding_magic = 0x1.8p23F;
constexpr float smallest_scale = 0x1p-126F;

// Codes of int4 are packed in blocks of this size; it is even, so that each block starts at a byte boundary.
constexpr std::size_t block = 512;

template <class Element>
std::uint32_t largest_key(const std::byte* in, std::size_t count) {
    // Signed, because the oldest vector instruction sets have no unsigned maximum; keys have 31 bits.
    std::int32_t largest = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t key = Element::key(load<typename Element::Bits>(in, i));
        largest = std::max(largest, static_cast<std::int32_t>(key));
    }
    return static_cast<std::uint32_t>(largest);
}

template <class Element>
float magnitude_of_key(std::uint32_t key) {
    if constexpr (sizeof(typename Element::Bits) == 2)
        return Element::to_single(static_cast<typename Element::Bits>(key >> 16));
    else
        return Element::to_single(key);
}

std::uint16_t scale_bits(float largest, int bits) {
    const float top = bits == 8 ? 127.0F : 7.0F;
    return float_bits::bf16_above(std::max(largest / top, smallest_scale));
}

template <class Element>
void quantise_group(const std::byte* in, std::size_t count, float inverse, std::int8_t* codes) {
    for (std::size_t i = 0; i < count; ++i) {
        const float shifted = load_single<Element>(in, i) * inverse + rounding_magic;
        codes[i] = static_cast<std::int8_t>(std::bit_cast<std::uint32_t>(shifted) & 0xFF);
    }
}

// Two codes in a byte, the even one in the low half, each plus 8; in a row of odd length the last high half is zero.
void pack(const std::int8_t* codes, std::size_t count, std::byte* out) {
    for (std::size_t i = 0; i < count / 2; ++i) {
        std::uint16_t pair;
        std::memcpy(&pair, codes + 2 * i, sizeof pair);
        const unsigned both = (pair & 0x0F0FU) ^ 0x0808U;  // +8 on four bits, without a carry
        out[i] = static_cast<std::byte>((both | both >> 4) & 0xFF);
    }
    if (count % 2 != 0) out[count / 2] = static_cast<std::byte>((codes[count - 1] + 8) & 0x0F);
}

void unpack(const std::byte* in, std::size_t count, std::int8_t* codes) {
    for (std::size_t i = 0; i < count / 2; ++i) {
        const int byte = std::to_integer<int>(in[i]);
        codes[2 * i] = static_cast<std::int8_t>((byte & 0x0F) - 8);
        codes[2 * i + 1] = static_cast<std::int8_t>((byte >> 4) - 8);
    }
    if (count % 2 != 0)
        codes[count - 1] = static_cast<std::int8_t>((std::to_integer<int>(in[count / 2]) & 0x0F) - 8);
}

template <class Element>
void quantise_packed(const std::byte* in, std::size_t count, float inverse, std::byte* out) {
    std::array<std::int8_t, block> codes;
    for (std::size_t start = 0; start < count; start += block) {
        const std::size_t here = std::min(block, count - start);
        quantise_group<Element>(in + start * sizeof(typename Element::Bits), here, inverse, codes.data());
        pack(codes.data(), here, out + start / 2);
    }
}

template <class Element>
void dequantise_group(const std::int8_t* codes, std::size_t count, float scale, std::byte* out) {
    for (std::size_t i = 0; i < count; ++i)
        store(out, i, Element::from_single(elements::clamp<Element>(static_cast<float>(codes[i]) * scale)));
}

template <class Element>
void dequantise_packed(const std::byte* in, std::size_t count, float scale, std::byte* out) {
    std::array<std::int8_t, block> codes;
    for (std::size_t start = 0; start < count; start += block) {
        const std::size_t here = std::min(block, count - start);
        unpack(in + start / 2, here, codes.data());
        dequantise_group<Element>(codes.data(), here, scale, out + start * sizeof(typename Element::Bits));
    }
}

// Calls `visit(group, first element, first code byte, count)` for each group of an array until it returns false.
template <class Visit>
bool for_each_group(layout::Rows rows, std::size_t group, int bits, Visit visit) {
    const std::size_t row_code_bytes = bits == 8 ? rows.length : (rows.length + 1) / 2;
    std::size_t index = 0;
    for (std::size_t row = 0; row < rows.count; ++row)
        for (std::size_t start = 0; start < rows.length; start += group, ++index) {
            const std::size_t code = row * row_code_bytes + (bits == 8 ? start : start / 2);
            if (!visit(index, row * rows.length + start, code, std::min(group, rows.length - start)))
                return false;
        }
    return true;
}

template <class Element, int bits>
bool quantise(const std::byte* in, layout::Rows rows, std::size_t group, std::byte* scales,
              std::byte* codes) {
    return for_each_group(
        rows, group, bits, [&](std::size_t index, std::size_t element, std::size_t code, std::size_t count) {
            const std::byte* values = in + element * sizeof(typename Element::Bits);
            const std::uint32_t key = largest_key<Element>(values, count);
            if (key >= Element::infinite_key) return false;
            const std::uint16_t scale = scale_bits(magnitude_of_key<Element>(key), bits);
            const float inverse = 1.0F / float_bits::single_from_bf16(scale);
            store(scales, index, scale);
            if constexpr (bits == 8)
                quantise_group<Element>(values, count, inverse, reinterpret_cast<std::int8_t*>(codes + code));
            else
                quantise_packed<Element>(values, count, inverse, codes + code);
            return true;
        });
}

template <class Element, int bits>
bool dequantise(const std::byte* scales, const std::byte* codes, layout::Rows rows, std::size_t group,
                std::byte* out) {
    return for_each_group(
        rows, group, bits, [&](std::size_t index, std::size_t element, std::size_t code, std::size_t count) {
            const auto scale_code = load<std::uint16_t>(scales, index);
            if (scale_code < 0x0080 || scale_code >= 0x7F80) return false;
            const float scale = float_bits::single_from_bf16(scale_code);
            std::byte* values = out + element * sizeof(typename Element::Bits);
            if constexpr (bits == 8)
                dequantise_group<Element>(reinterpret_cast<const std::int8_t*>(codes + code), count, scale,
                                          values);
            else
                dequantise_packed<Element>(codes + code, count, scale, values);
            return true;
        });
}

}  // namespace

constinit const Groups scalar::groups = {
    {quantise<Float32, 8>, quantise<Float16, 8>, quantise<BFloat16, 8>},
    {quantise<Float32, 4>, quantise<Float16, 4>, quantise<BFloat16, 4>},
    {dequantise<Float32, 8>, dequantise<Float16, 8>, dequantise<BFloat16, 8>},
    {dequantise<Float32, 4>, dequantise<Float16, 4>, dequantise<BFloat16, 4>},
};

}  // namespace orbitsplit::kernels
