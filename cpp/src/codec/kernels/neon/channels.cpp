#include "codec/kernels/vector/channels.hpp"

#include <arm_neon.h>

namespace orbitsplit::kernels {

namespace {

struct Singles {
    static constexpr std::size_t lanes = 4;
    static constexpr std::size_t panel = 4;
    using Floats = float __attribute__((vector_size(4 * lanes)));
    using Ints = int __attribute__((vector_size(4 * lanes)));

    static int32x4_t bits(Ints x) { return reinterpret_cast<int32x4_t>(x); }

    template <std::size_t distance>
    static Floats partner(Floats y) {
        const auto numbers = reinterpret_cast<float32x4_t>(y);
        if constexpr (distance == 1)
            return reinterpret_cast<Floats>(vrev64q_f32(numbers));
        else
            return reinterpret_cast<Floats>(vextq_f32(numbers, numbers, 2));
    }

    static Ints truncate(Floats x) {
        return reinterpret_cast<Ints>(vcvtq_s32_f32(reinterpret_cast<float32x4_t>(x)));
    }
    static Floats to_floats(Ints x) { return reinterpret_cast<Floats>(vcvtq_f32_s32(bits(x))); }
    static bool is_zero(Ints x) { return vmaxvq_u32(reinterpret_cast<uint32x4_t>(x)) == 0; }
    static unsigned mask_of(Ints x) {
        const uint32x4_t weights = {1, 2, 4, 8};
        return vaddvq_u32(vandq_u32(reinterpret_cast<uint32x4_t>(x), weights));
    }

    static void store_codes(const Ints (&x)[4], std::int8_t* out) {
        const int16x8_t low = vqmovn_high_s32(vqmovn_s32(bits(x[0])), bits(x[1]));
        const int16x8_t high = vqmovn_high_s32(vqmovn_s32(bits(x[2])), bits(x[3]));
        vst1q_s8(out, vqmovn_high_s16(vqmovn_s16(low), high));
    }

    static Ints load_codes(const std::int8_t* in) {
        int four;
        __builtin_memcpy(&four, in, sizeof four);
        const int8x8_t codes = vreinterpret_s8_s32(vdup_n_s32(four));
        return reinterpret_cast<Ints>(vmovl_s16(vget_low_s16(vmovl_s8(codes))));
    }

    static bool has_escape(const std::int8_t* codes) {
        return vmaxvq_u8(vceqq_s8(vld1q_s8(codes), vdupq_n_s8(escape_code))) != 0;
    }
};

}  // namespace

constinit const Channels neon::channels = make_channels<Singles>();

}  // namespace orbitsplit::kernels
