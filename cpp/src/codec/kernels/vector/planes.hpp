// Values of bfloat16 as their exponents and their other bits, a block at a time; what is left over goes through a padded
// block. All in an anonymous namespace, so that each file has its own copy.
#pragma once

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

// `Blocks` has a number of `values` and exponents(in, out), split(in, exponents, others) and merge(exponents, others,
// out) for so many.
template <class Blocks>
struct PlanesOfBlocks {
    static constexpr std::size_t values = Blocks::values;

    static void exponents(const std::byte* in, std::size_t count, std::uint8_t* out) {
        const std::size_t whole = count / values * values;
        for (std::size_t i = 0; i < whole; i += values) Blocks::exponents(in + 2 * i, out + i);
        if (whole == count) return;
        std::byte rest[2 * values] = {};
        std::uint8_t last[values];
        __builtin_memcpy(rest, in + 2 * whole, 2 * (count - whole));
        Blocks::exponents(rest, last);
        __builtin_memcpy(out + whole, last, count - whole);
    }

    static void split(const std::byte* in, std::size_t count, std::uint8_t* exponents, std::uint8_t* others) {
        const std::size_t whole = count / values * values;
        for (std::size_t i = 0; i < whole; i += values) Blocks::split(in + 2 * i, exponents + i, others + i);
        if (whole == count) return;
        std::byte rest[2 * values] = {};
        std::uint8_t last[2][values];
        __builtin_memcpy(rest, in + 2 * whole, 2 * (count - whole));
        Blocks::split(rest, last[0], last[1]);
        __builtin_memcpy(exponents + whole, last[0], count - whole);
        __builtin_memcpy(others + whole, last[1], count - whole);
    }

    static void merge(const std::uint8_t* exponents, const std::uint8_t* others, std::size_t count,
                      std::byte* out) {
        const std::size_t whole = count / values * values;
        for (std::size_t i = 0; i < whole; i += values) Blocks::merge(exponents + i, others + i, out + 2 * i);
        if (whole == count) return;
        std::uint8_t rest[2][values] = {};
        std::byte last[2 * values];
        __builtin_memcpy(rest[0], exponents + whole, count - whole);
        __builtin_memcpy(rest[1], others + whole, count - whole);
        Blocks::merge(rest[0], rest[1], last);
        __builtin_memcpy(out + 2 * whole, last, 2 * (count - whole));
    }
};

}  // namespace

}  // namespace orbitsplit::kernels
