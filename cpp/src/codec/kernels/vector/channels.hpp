// The quantiser of calibrated codecs, on tiles of channels whose codes are packed together; what is left over goes
// through a padded tile. All in an anonymous namespace, so that each file has its own copy.
//
// Beside what transforms.hpp asks for, a `Set` has truncate(Floats), to_floats(Ints), is_zero(Ints), mask_of(Ints) with a
// bit for each lane, store_codes(Ints [4], out), which saturates, and load_codes(in).
#pragma once

#include "codec/kernels/kernels.hpp"
#include "codec/kernels/vector/transforms.hpp"
#include "codec/kernels/vector/transpose.hpp"

namespace orbitsplit::kernels {

namespace {

constexpr std::uint32_t sign_bit = 0x80000000;
constexpr std::uint32_t largest_bf16_bits = 0x7F7F0000;
constexpr std::uint32_t infinity_bits = 0x7F800000;

inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

// The nearest finite bfloat16 of a finite number, ties to even.
inline std::uint16_t bf16_nearest(float y) {
    const std::uint32_t bits = bits_of(y);
    const std::uint32_t size = bits & ~sign_bit;
    const std::uint32_t limited = size < largest_bf16_bits ? size : largest_bf16_bits;
    return static_cast<std::uint16_t>(((limited + 0x7FFF + (limited >> 16 & 1)) | (bits & sign_bit)) >> 16);
}

inline float clamp(float x) {
    constexpr float largest = 0x1.FFFFFEp127F;
    const float below = x < largest ? x : largest;
    return below > -largest ? below : -largest;
}

template <class Set>
struct Quantiser {
    using Floats = typename Set::Floats;
    using Ints = typename Set::Ints;
    static constexpr std::size_t lanes = Set::lanes;
    static constexpr std::size_t tile = 4 * lanes;

    // Parameters of the channels of one tile, the last one padded with zeros.
    struct Padded {
        float shift[tile] = {};
        float step[tile] = {};
        float inverse_step[tile] = {};
        float threshold[tile] = {};

        Padded(const ChannelScales& scales, std::size_t first, std::size_t count) {
            const auto copy = [&](const float* from, float* to) {
                if (from != nullptr) __builtin_memcpy(to, from + first, count * sizeof(float));
            };
            copy(scales.shift, shift);
            copy(scales.step, step);
            copy(scales.inverse_step, inverse_step);
            copy(scales.threshold, threshold);
        }

        ChannelScales scales(const ChannelScales& like) const {
            return {shift, step, inverse_step, threshold, like.rounding, like.shrink};
        }
    };

    static Ints magnitude(Floats x) { return reinterpret_cast<Ints>(x) & static_cast<int>(~sign_bit); }
    static Floats with_sign(float size, Floats x) {
        const Ints sign = reinterpret_cast<Ints>(x) & static_cast<int>(sign_bit);
        return reinterpret_cast<Floats>(sign | static_cast<int>(bits_of(size)));
    }
    static Floats load(const void* from, std::size_t at) {
        return load_floats<Set>(static_cast<const float*>(from) + at);
    }

    // Marks the codes of a mask as escapes and appends their values; not_finite if one is NaN or infinite.
    static std::size_t store_escapes(unsigned mask, Floats y, std::int8_t* codes, std::byte* values) {
        std::size_t count = 0;
        for (; mask != 0; mask &= mask - 1, ++count) {
            const auto lane = static_cast<std::size_t>(__builtin_ctz(mask));
            if ((bits_of(y[lane]) & ~sign_bit) >= infinity_bits) return not_finite;
            const std::uint16_t value = bf16_nearest(y[lane]);
            codes[lane] = escape_code;
            __builtin_memcpy(values + 2 * count, &value, sizeof value);
        }
        return count;
    }

    template <bool has_shift, bool has_threshold>
    static std::size_t quantise_tile(const std::byte* in, const ChannelScales& scales, std::size_t c,
                                     std::int8_t* codes, std::byte* values) {
        Floats y[4];
        Ints is_beyond[4];
        Ints numbers[4];
#pragma GCC unroll 4
        for (std::size_t k = 0; k < 4; ++k) {
            const std::size_t at = c + k * lanes;
            y[k] = load(in, k * lanes);
            if constexpr (has_shift) y[k] -= load(scales.shift, at);
            // The sign goes along through product and sum: rounding to nearest is symmetric.
            const Floats steps = y[k] * load(scales.inverse_step, at) + with_sign(scales.rounding, y[k]);
            is_beyond[k] = ~(reinterpret_cast<Floats>(magnitude(steps)) < 128.0F);
            numbers[k] = Set::truncate(steps);
            if constexpr (has_threshold) {
                const Ints is_small = reinterpret_cast<Floats>(magnitude(y[k])) < load(scales.threshold, at);
                is_beyond[k] &= ~is_small;
                numbers[k] &= ~is_small;
            }
        }
        Set::store_codes(numbers, codes);
        if (Set::is_zero((is_beyond[0] | is_beyond[1]) | (is_beyond[2] | is_beyond[3]))) [[likely]]
            return 0;
        std::size_t escapes = 0;
        for (std::size_t k = 0; k < 4; ++k) {
            const std::size_t found =
                store_escapes(Set::mask_of(is_beyond[k]), y[k], codes + k * lanes, values + 2 * escapes);
            if (found == not_finite) return not_finite;
            escapes += found;
        }
        return escapes;
    }

    template <bool has_shift, bool has_threshold>
    static std::size_t quantise_rows(const std::byte* in, layout::Rows rows, const ChannelScales& scales,
                                     std::int8_t* codes, std::byte* values) {
        const std::size_t whole = rows.length / tile * tile;
        const std::size_t rest = rows.length - whole;
        const Padded padded(scales, whole, rest);
        const ChannelScales last = padded.scales(scales);
        std::size_t escapes = 0;
        for (std::size_t row = 0; row < rows.count; ++row) {
            std::size_t found = 0;
            for (std::size_t c = 0; c < whole; c += tile) {
                found = quantise_tile<has_shift, has_threshold>(in + c * sizeof(float), scales, c, codes + c,
                                                                values + 2 * escapes);
                if (found == not_finite) return not_finite;
                escapes += found;
            }
            if (rest > 0) {
                alignas(32) std::byte numbers[tile * sizeof(float)] = {};
                std::int8_t packed[tile];
                __builtin_memcpy(numbers, in + whole * sizeof(float), rest * sizeof(float));
                found =
                    quantise_tile<has_shift, has_threshold>(numbers, last, 0, packed, values + 2 * escapes);
                if (found == not_finite) return not_finite;
                escapes += found;
                __builtin_memcpy(codes + whole, packed, rest);
            }
            in += rows.length * sizeof(float);
            codes += rows.length;
        }
        return escapes;
    }

    // Values of escapes that are left.
    struct Values {
        const std::byte* next;
        std::size_t left;
    };

    // Replaces the numbers of escaped codes; false if they are missing or not finite.
    static bool load_escapes(const std::int8_t* codes, const float* shift, Values& values, std::byte* out) {
        for (std::size_t i = 0; i < tile; ++i) {
            if (codes[i] != escape_code) continue;
            if (values.left == 0) return false;
            std::uint16_t value;
            __builtin_memcpy(&value, values.next, sizeof value);
            const float y = float_of(std::uint32_t{value} << 16);
            if ((bits_of(y) & ~sign_bit) >= infinity_bits) return false;
            const float x = clamp(y + (shift != nullptr ? shift[i] : 0));
            __builtin_memcpy(out + i * sizeof x, &x, sizeof x);
            values.next += sizeof value;
            --values.left;
        }
        return true;
    }

    template <bool has_shift, bool has_shrink>
    static bool dequantise_tile(const std::int8_t* codes, const ChannelScales& scales, std::size_t c,
                                Values& values, std::byte* out) {
#pragma GCC unroll 4
        for (std::size_t k = 0; k < 4; ++k) {
            const std::size_t at = c + k * lanes;
            const Ints code = Set::load_codes(codes + k * lanes);
            Floats y = Set::to_floats(code);
            if constexpr (has_shrink) {
                const Ints shrunk = reinterpret_cast<Ints>(y - with_sign(scales.shrink, y));
                y = reinterpret_cast<Floats>(shrunk & (code != 0));
            }
            y *= load(scales.step, at);
            // Codes alone stay in range by the limits on steps and shifts.
            if constexpr (has_shift) y += load(scales.shift, at);
            __builtin_memcpy(out + k * lanes * sizeof(float), &y, sizeof y);
        }
        if (!Set::has_escape(codes)) [[likely]]
            return true;
        return load_escapes(codes, has_shift ? scales.shift + c : nullptr, values, out);
    }

    template <bool has_shift, bool has_shrink>
    static std::size_t dequantise_rows(const std::int8_t* codes, layout::Rows rows,
                                       const ChannelScales& scales, const std::byte* values,
                                       std::size_t count, std::byte* out) {
        const std::size_t whole = rows.length / tile * tile;
        const std::size_t rest = rows.length - whole;
        const Padded padded(scales, whole, rest);
        const ChannelScales last = padded.scales(scales);
        Values next{values, count};
        for (std::size_t row = 0; row < rows.count; ++row) {
            for (std::size_t c = 0; c < whole; c += tile)
                if (!dequantise_tile<has_shift, has_shrink>(codes + c, scales, c, next,
                                                            out + c * sizeof(float)))
                    return not_finite;
            if (rest > 0) {
                std::int8_t packed[tile] = {};
                std::byte numbers[tile * sizeof(float)];
                __builtin_memcpy(packed, codes + whole, rest);
                if (!dequantise_tile<has_shift, has_shrink>(packed, last, 0, next, numbers))
                    return not_finite;
                __builtin_memcpy(out + whole * sizeof(float), numbers, rest * sizeof(float));
            }
            codes += rows.length;
            out += rows.length * sizeof(float);
        }
        return count - next.left;
    }

    static std::size_t quantise(const std::byte* in, layout::Rows rows, const ChannelScales& scales,
                                std::int8_t* codes, std::byte* values) {
        const auto of_rows =
            scales.shift != nullptr
                ? (scales.threshold != nullptr ? quantise_rows<true, true> : quantise_rows<true, false>)
                : (scales.threshold != nullptr ? quantise_rows<false, true> : quantise_rows<false, false>);
        return of_rows(in, rows, scales, codes, values);
    }

    static std::size_t dequantise(const std::int8_t* codes, layout::Rows rows, const ChannelScales& scales,
                                  const std::byte* values, std::size_t count, std::byte* out) {
        const auto of_rows =
            scales.shift != nullptr
                ? (scales.shrink > 0 ? dequantise_rows<true, true> : dequantise_rows<true, false>)
                : (scales.shrink > 0 ? dequantise_rows<false, true> : dequantise_rows<false, false>);
        return of_rows(codes, rows, scales, values, count, out);
    }
};

template <class Set>
constexpr Channels make_channels() {
    return {Quantiser<Set>::quantise,
            Quantiser<Set>::dequantise,
            hadamard<Set>,
            to_columns,
            to_rows,
            multiply<Set>};
}

}  // namespace

}  // namespace orbitsplit::kernels
