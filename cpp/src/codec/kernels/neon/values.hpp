// Sixteen bfloat16 values: as their low and high bytes, or as their exponents and their other bits; each NEON file has
// its own copy.
#pragma once

#include <arm_neon.h>

#include "codec/kernels/vector/planes.hpp"

namespace orbitsplit::kernels {

namespace {

struct ValueBlocks {
    static constexpr std::size_t values = 16;

    static uint8x16x2_t load(const std::byte* in) {
        return vld2q_u8(reinterpret_cast<const std::uint8_t*>(in));
    }

    // A value is a sign, eight bits of exponent and seven of mantissa.
    static uint8x16_t exponents_of(uint8x16x2_t in) {
        return vsriq_n_u8(vshlq_n_u8(in.val[1], 1), in.val[0], 7);
    }

    static void exponents(const std::byte* in, std::uint8_t* out) { vst1q_u8(out, exponents_of(load(in))); }

    static void split(const std::byte* in, std::uint8_t* exponents, std::uint8_t* others) {
        const uint8x16x2_t both = load(in);
        vst1q_u8(exponents, exponents_of(both));
        vst1q_u8(others, vbslq_u8(vdupq_n_u8(0x80), both.val[1], both.val[0]));
    }

    static void merge(const std::uint8_t* exponents, const std::uint8_t* others, std::byte* out) {
        const uint8x16_t exponent = vld1q_u8(exponents);
        const uint8x16_t other = vld1q_u8(others);
        const uint8x16_t sign = vdupq_n_u8(0x80);
        const uint8x16x2_t both = {
            {vbslq_u8(sign, vshlq_n_u8(exponent, 7), other), vbslq_u8(sign, other, vshrq_n_u8(exponent, 1))}};
        vst2q_u8(reinterpret_cast<std::uint8_t*>(out), both);
    }
};

}  // namespace

}  // namespace orbitsplit::kernels
