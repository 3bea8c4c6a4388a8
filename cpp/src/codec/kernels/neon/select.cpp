#include "codec/kernels/vector/select.hpp"

#include <arm_neon.h>

namespace orbitsplit::kernels {

namespace {

struct KeyOctets {
    struct Keys {
        int32x4_t low;
        int32x4_t high;
    };

    template <std::size_t bytes>
    static Keys load(const std::byte* in) {
        const auto* from = reinterpret_cast<const std::uint8_t*>(in);
        if constexpr (bytes == 4)
            return {vreinterpretq_s32_u8(vld1q_u8(from)), vreinterpretq_s32_u8(vld1q_u8(from + 16))};
        const uint16x8_t words = vreinterpretq_u16_u8(vld1q_u8(from));
        return {vreinterpretq_s32_u32(vshll_n_u16(vget_low_u16(words), 16)),
                vreinterpretq_s32_u32(vshll_high_n_u16(words, 16))};
    }
    static Keys load(const std::int32_t* from) { return {vld1q_s32(from), vld1q_s32(from + 4)}; }
    static void store(Keys keys, std::int32_t* to) {
        vst1q_s32(to, keys.low);
        vst1q_s32(to + 4, keys.high);
    }

    static Keys magnitude(Keys x) {
        const int32x4_t size = vdupq_n_s32(0x7FFFFFFF);
        return {vandq_s32(x.low, size), vandq_s32(x.high, size)};
    }
    static Keys larger(Keys a, Keys b) { return {vmaxq_s32(a.low, b.low), vmaxq_s32(a.high, b.high)}; }
    static std::int32_t largest(Keys x) { return vmaxvq_s32(vmaxq_s32(x.low, x.high)); }
    static Keys is_above(Keys x, std::int32_t limit) {
        const int32x4_t all = vdupq_n_s32(limit);
        return {vreinterpretq_s32_u32(vcgtq_s32(x.low, all)), vreinterpretq_s32_u32(vcgtq_s32(x.high, all))};
    }
    static unsigned mask_of(Keys is) {
        const int16x8_t words = vmovn_high_s32(vmovn_s32(is.low), is.high);
        const uint8x8_t bits = vcreate_u8(0x8040201008040201);
        return vaddv_u8(vand_u8(vreinterpret_u8_s8(vmovn_s16(words)), bits));
    }
    static Keys minus(Keys a, Keys b) { return {vsubq_s32(a.low, b.low), vsubq_s32(a.high, b.high)}; }
    static std::int32_t sum(Keys x) { return vaddvq_s32(vaddq_s32(x.low, x.high)); }
    static unsigned count(unsigned mask) { return octet_controls.count[mask]; }

    // Of four lanes each, whose bytes are at four times their number.
    static int32x4_t compress(int32x4_t four, unsigned mask) {
        const uint8x16_t in_word = vreinterpretq_u8_u32(vdupq_n_u32(0x03020100));
        const uint8x8_t lanes = vld1_u8(octet_controls.lanes[mask]);
        const uint8x8_t words = vzip1_u8(lanes, lanes);
        const uint8x16_t bytes = vcombine_u8(vzip1_u8(words, words), vzip2_u8(words, words));
        const uint8x16_t control = vaddq_u8(vshlq_n_u8(bytes, 2), in_word);
        return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(four), control));
    }

    static void append(Keys keys, unsigned mask, std::int32_t* out) {
        vst1q_s32(out, compress(keys.low, mask & 0xF));
        vst1q_s32(out + octet_controls.count[mask & 0xF], compress(keys.high, mask >> 4));
    }

    static void store_upper(Keys keys, std::byte* out) {
        const uint16x8_t words =
            vuzp2q_u16(vreinterpretq_u16_s32(keys.low), vreinterpretq_u16_s32(keys.high));
        vst1q_u8(reinterpret_cast<std::uint8_t*>(out), vreinterpretq_u8_u16(words));
    }

    // Ties to even.
    static void store_bf16(Keys keys, std::byte* out) {
        const auto round = [](int32x4_t x) {
            const uint32x4_t bits = vreinterpretq_u32_s32(x);
            const uint32x4_t size =
                vminq_u32(vbicq_u32(bits, vdupq_n_u32(0x80000000)), vdupq_n_u32(0x7F7F0000));
            const uint32x4_t odd = vandq_u32(vshrq_n_u32(size, 16), vdupq_n_u32(1));
            const uint32x4_t rounded = vaddq_u32(vaddq_u32(size, vdupq_n_u32(0x7FFF)), odd);
            return vreinterpretq_s32_u32(vbslq_u32(vdupq_n_u32(0x80000000), bits, rounded));
        };
        store_upper({round(keys.low), round(keys.high)}, out);
    }

    template <std::size_t bytes>
    static void place(const std::byte* values, unsigned mask, std::byte* out) {
        auto* to = reinterpret_cast<std::uint8_t*>(out);
        const uint8x16_t here = vld1q_u8(reinterpret_cast<const std::uint8_t*>(values));
        const uint8x16_t words = vqtbl1q_u8(here, vld1q_u8(octet_controls.expand_words[mask]));
        if constexpr (bytes == 4) {
            const uint16x8_t eight = vreinterpretq_u16_u8(words);
            vst1q_u8(to, vreinterpretq_u8_u32(vshll_n_u16(vget_low_u16(eight), 16)));
            vst1q_u8(to + 16, vreinterpretq_u8_u32(vshll_high_n_u16(eight, 16)));
        } else {
            vst1q_u8(to, words);
        }
    }
};

}  // namespace

constinit const Select neon::select = make_select<KeyOctets>();

}  // namespace orbitsplit::kernels
