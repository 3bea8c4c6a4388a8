// Rows of weights in NEON registers; each file has its own copy.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "weights/kernels/vector/rows.hpp"

namespace orbitsplit::weights {

namespace {

inline float32x4_t quiet(float32x4_t x) {
    return vbslq_f32(vceqq_f32(x, x), x, vdupq_n_f32(__builtin_nanf("")));
}

inline bool is_finite(float value) { return __builtin_fabsf(value) < __builtin_inff(); }

inline float single_from_half(std::uint16_t half) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
}

// The codes of a group as 16-bit numbers.
struct Words {
    int16x8_t part[4];
};

inline int8x16_t load_16(const std::byte* bytes) {
    return vreinterpretq_s8_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(bytes)));
}

inline Words words_of(int8x16_t first, int8x16_t second) {
    return {{vmovl_s8(vget_low_s8(first)), vmovl_high_s8(first), vmovl_s8(vget_low_s8(second)),
             vmovl_high_s8(second)}};
}

inline Words expand_int8(const std::byte* codes) { return words_of(load_16(codes), load_16(codes + 16)); }

inline Words expand_int4(const std::byte* codes) {
    const uint8x16_t both = vreinterpretq_u8_s8(load_16(codes));
    return words_of(vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))),
                    vreinterpretq_s8_u8(vshrq_n_u8(both, 4)));
}

// 16 in the bytes whose bit of the two bytes is set.
inline uint8x16_t fifth_bits(const std::byte* bits) {
    const uint8x16_t own = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    const uint8x16_t all = vcombine_u8(vdup_n_u8(static_cast<std::uint8_t>(bits[0])),
                                       vdup_n_u8(static_cast<std::uint8_t>(bits[1])));
    return vandq_u8(vtstq_u8(all, own), vdupq_n_u8(16));
}

inline Words expand_int5(const std::byte* codes) {
    const uint8x16_t both = vreinterpretq_u8_s8(load_16(codes));
    const std::byte* bits = codes + int4_code_bytes;
    return words_of(vreinterpretq_s8_u8(vorrq_u8(vandq_u8(both, vdupq_n_u8(15)), fifth_bits(bits))),
                    vreinterpretq_s8_u8(vorrq_u8(vshrq_n_u8(both, 4), fifth_bits(bits + 2))));
}

}  // namespace

}  // namespace orbitsplit::weights
