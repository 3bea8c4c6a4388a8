#include "codec/kernels/vector/groups.hpp"

#include "codec/kernels/neon/elements.hpp"

namespace orbitsplit::kernels {

namespace {

struct Blocks {
    static constexpr std::size_t lanes = 4;
    static constexpr std::size_t block = 32;

    template <class Element>
    static std::uint32_t largest_bits(const std::byte* in) {
        uint32x4_t largest = vdupq_n_u32(0);
        for (std::size_t k = 0; k < block; k += lanes)
            largest =
                vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(Element::load(in + k * Element::bytes))));
        return vmaxvq_u32(largest);
    }

    // The codes of sixteen elements, starting at the k-th.
    template <class Element>
    static int8x16_t codes_of(const std::byte* in, std::size_t k, float inverse) {
        const auto four = [&](std::size_t i) {
            return vmovn_s32(
                vcvtnq_s32_f32(vmulq_n_f32(Element::load(in + (k + i) * Element::bytes), inverse)));
        };
        return vcombine_s8(vmovn_s16(vcombine_s16(four(0), four(4))),
                           vmovn_s16(vcombine_s16(four(8), four(12))));
    }

    template <class Element, int bits>
    static void quantise_block(const std::byte* in, float inverse, std::byte* out) {
        auto* bytes = reinterpret_cast<std::uint8_t*>(out);
        const uint8x16_t first = vreinterpretq_u8_s8(codes_of<Element>(in, 0, inverse));
        const uint8x16_t second = vreinterpretq_u8_s8(codes_of<Element>(in, 16, inverse));
        if constexpr (bits == 8) {
            vst1q_u8(bytes, first);
            vst1q_u8(bytes + 16, second);
        } else {
            // The even code of a pair is the low half; then 8 is added to both.
            const uint8x16_t low = vandq_u8(vuzp1q_u8(first, second), vdupq_n_u8(0x0F));
            vst1q_u8(bytes, veorq_u8(vsliq_n_u8(low, vuzp2q_u8(first, second), 4), vdupq_n_u8(0x88)));
        }
    }

    // Sixteen codes to elements, starting at the k-th.
    template <class Element>
    static void write(int8x16_t codes, float scale, std::byte* out, std::size_t k) {
        const auto four = [&](int16x4_t words, std::size_t i) {
            const float32x4_t x = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(words)), scale);
            Element::store(out + (k + i) * Element::bytes, Element::clamp(x));
        };
        const int16x8_t low = vmovl_s8(vget_low_s8(codes));
        const int16x8_t high = vmovl_s8(vget_high_s8(codes));
        four(vget_low_s16(low), 0);
        four(vget_high_s16(low), 4);
        four(vget_low_s16(high), 8);
        four(vget_high_s16(high), 12);
    }

    template <class Element, int bits>
    static void dequantise_block(const std::byte* in, float scale, std::byte* out) {
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(in);
        if constexpr (bits == 8) {
            write<Element>(vreinterpretq_s8_u8(vld1q_u8(bytes)), scale, out, 0);
            write<Element>(vreinterpretq_s8_u8(vld1q_u8(bytes + 16)), scale, out, 16);
        } else {
            const uint8x16_t pairs = vld1q_u8(bytes);
            const uint8x16_t low = vandq_u8(pairs, vdupq_n_u8(0x0F));
            const uint8x16_t high = vshrq_n_u8(pairs, 4);
            const int8x16_t eight = vdupq_n_s8(8);
            write<Element>(vsubq_s8(vreinterpretq_s8_u8(vzip1q_u8(low, high)), eight), scale, out, 0);
            write<Element>(vsubq_s8(vreinterpretq_s8_u8(vzip2q_u8(low, high)), eight), scale, out, 16);
        }
    }
};

}  // namespace

constinit const Groups neon::groups = make_groups<GroupsOfBlocks<Blocks>, Float32, Float16, BFloat16>();

}  // namespace orbitsplit::kernels
