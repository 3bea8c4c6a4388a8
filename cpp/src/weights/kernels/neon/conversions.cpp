#include "weights/kernels/neon/rows.hpp"

namespace orbitsplit::weights {

namespace {

constexpr std::size_t parts = group / 4;

void round_group(const float* x, std::int16_t* codes, float& scale_out, float& sum_out) {
    uint32x4_t largest = vdupq_n_u32(0);
    float32x4_t values[parts];
    for (std::size_t k = 0; k < parts; ++k) {
        values[k] = vld1q_f32(x + 4 * k);
        largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(values[k])));
    }
    const float top = vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(largest))), 0);
    if (!is_finite(top)) {
        for (std::size_t i = 0; i < group; i += 8) vst1q_s16(codes + i, vdupq_n_s16(0));
        scale_out = sum_out = __builtin_nanf("");
        return;
    }
    const float quotient = top / largest_code;
    const float scale = quotient < smallest_scale ? smallest_scale : quotient;
    const float32x4_t inverse = vdupq_n_f32(1.0F / scale);
    int32x4_t sums = vdupq_n_s32(0);
    for (std::size_t k = 0; k < parts; k += 2) {
        const int32x4_t a = vcvtnq_s32_f32(vmulq_f32(values[k], inverse));
        const int32x4_t b = vcvtnq_s32_f32(vmulq_f32(values[k + 1], inverse));
        sums = vaddq_s32(sums, vaddq_s32(a, b));
        vst1q_s16(codes + 4 * k, vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
    }
    scale_out = scale;
    sum_out = scale * static_cast<float>(vaddvq_s32(sums));
}

// The values scale * q - minimum; the subtraction of 0 changes no value, not even the sign of a zero.
void dequantise_group(const Words& q, float scale, float minimum, float* out) {
    for (std::size_t k = 0; k < parts; ++k) {
        const int16x4_t words = k % 2 == 0 ? vget_low_s16(q.part[k / 2]) : vget_high_s16(q.part[k / 2]);
        const float32x4_t w = vmulq_f32(vdupq_n_f32(scale), vcvtq_f32_s32(vmovl_s16(words)));
        vst1q_f32(out + 4 * k, quiet(vsubq_f32(w, vdupq_n_f32(minimum))));
    }
}

void dequantise_int8(const std::byte* weights, std::size_t rows, std::size_t groups, float* out) {
    for (std::size_t g = 0; g < rows * groups; ++g, weights += int8_group_bytes, out += group)
        dequantise_group(expand_int8(weights + 2), single_from_half(load<std::uint16_t>(weights)), 0.0F, out);
}

template <Words (*Expand)(const std::byte*)>
void dequantise_codes(const std::byte* codes, float scale, float minimum, float* out) {
    dequantise_group(Expand(codes), scale, minimum, out);
}

}  // namespace

constinit const Conversions neon::conversions = {
    round_row<round_group>,
    {dequantise_int8, dequantise_with_minima<int4_code_bytes, dequantise_codes<expand_int4>>,
     dequantise_with_minima<int5_code_bytes, dequantise_codes<expand_int5>>}};

}  // namespace orbitsplit::weights
