// Four elements of an activation as float32 lanes, by dtype; each NEON file has its own copy.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace orbitsplit::kernels {

namespace {

// Memory of a caller may be unaligned: loads and stores go by bytes.
inline uint16x4_t load_words(const std::byte* in) {
    return vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const std::uint8_t*>(in)));
}

inline void store_words(std::byte* out, uint16x4_t x) {
    vst1_u8(reinterpret_cast<std::uint8_t*>(out), vreinterpret_u8_u16(x));
}

inline float32x4_t clamp_to(float32x4_t x, float largest) {
    return vmaxq_f32(vminq_f32(x, vdupq_n_f32(largest)), vdupq_n_f32(-largest));
}

// Infinity and NaN are kept.
inline float32x4_t clamp_finite_to(float32x4_t x, float largest) {
    const uint32x4_t is_finite = vcltq_f32(vabsq_f32(x), vdupq_n_f32(__builtin_inff()));
    return vbslq_f32(is_finite, clamp_to(x, largest), x);
}

// Conversion to float32 is exact. `clamp` limits to the largest finite value of the dtype; `store` rounds to nearest,
// ties to even, and expects finite values to be within the range.
struct Float32 {
    static constexpr std::size_t lanes = 4;
    static constexpr std::size_t bytes = 4;
    static float32x4_t load(const std::byte* in) {
        return vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(in)));
    }
    static float32x4_t clamp(float32x4_t x) { return clamp_to(x, 0x1.FFFFFEp127F); }
    static float32x4_t clamp_finite(float32x4_t x) { return x; }
    static void store(std::byte* out, float32x4_t x) {
        vst1q_u8(reinterpret_cast<std::uint8_t*>(out), vreinterpretq_u8_f32(x));
    }
};

struct Float16 {
    static constexpr std::size_t lanes = 4;
    static constexpr std::size_t bytes = 2;
    static constexpr float largest = 65504.0F;
    static float32x4_t load(const std::byte* in) {
        return vcvt_f32_f16(vreinterpret_f16_u16(load_words(in)));
    }
    static float32x4_t clamp(float32x4_t x) { return clamp_to(x, largest); }
    static float32x4_t clamp_finite(float32x4_t x) { return clamp_finite_to(x, largest); }
    static void store(std::byte* out, float32x4_t x) {
        store_words(out, vreinterpret_u16_f16(vcvt_f16_f32(x)));
    }
};

struct BFloat16 {
    static constexpr std::size_t lanes = 4;
    static constexpr std::size_t bytes = 2;
    static constexpr float largest = 0x1.FEp127F;
    static float32x4_t load(const std::byte* in) {
        return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(load_words(in)), 16));
    }
    static float32x4_t clamp(float32x4_t x) { return clamp_to(x, largest); }
    static float32x4_t clamp_finite(float32x4_t x) { return clamp_finite_to(x, largest); }
    // A NaN becomes a quiet NaN of the same sign.
    static void store(std::byte* out, float32x4_t x) {
        const uint32x4_t bits = vreinterpretq_u32_f32(x);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t raised = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd);
        const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
        store_words(out, vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), raised, quiet), 16));
    }
};

}  // namespace

}  // namespace orbitsplit::kernels
