// What vectors of the compiler do not offer for eight lanes of 16 bits; each NEON file has its own copy.
#pragma once

#include <arm_neon.h>

#include "codec/kernels/vector/octets.hpp"

namespace orbitsplit::kernels {

namespace {

struct Octets {
    static uint16x8_t bits_of(Words words) { return reinterpret_cast<uint16x8_t>(words); }
    static uint8x16_t bytes_of(Words words) { return reinterpret_cast<uint8x16_t>(words); }
    static Words words_of(uint16x8_t bits) { return reinterpret_cast<Words>(bits); }

    static Words multiply_high(Words a, Words b) {
        const uint32x4_t first = vmull_u16(vget_low_u16(bits_of(a)), vget_low_u16(bits_of(b)));
        const uint32x4_t second = vmull_high_u16(bits_of(a), bits_of(b));
        return words_of(vuzp2q_u16(vreinterpretq_u16_u32(first), vreinterpretq_u16_u32(second)));
    }

    // A bit for each word that is all ones instead of zero.
    static unsigned mask_of(Words words) {
        const uint8x8_t bits = vcreate_u8(0x8040201008040201);
        return vaddv_u8(vand_u8(vmovn_u16(bits_of(words)), bits));
    }

    static bool is_zero(Words words) { return vmaxvq_u16(bits_of(words)) == 0; }

    static unsigned count(unsigned mask) { return octet_controls.count[mask]; }

    static Words expand(const std::uint8_t* bytes, unsigned mask) {
        const uint8x16_t here = vcombine_u8(vld1_u8(bytes), vdup_n_u8(0));
        return words_of(vreinterpretq_u16_u8(vqtbl1q_u8(here, vld1q_u8(octet_controls.expand[mask]))));
    }

    static void compress_before(std::uint8_t* end, Words words, unsigned mask) {
        vst1_u8(end - octet, vqtbl1_u8(bytes_of(words), vld1_u8(octet_controls.compress[mask])));
    }

    static void store_high_bytes(Words words, std::uint8_t* out) {
        vst1_u8(out, vshrn_n_u16(bits_of(words), 8));
    }

    // Eight entries of 32 bits, whose addresses `at` gives, as their lower and their upper halves.
    template <class At>
    static void lookup(At at, Words& lower, Words& upper) {
        const auto four = [&](std::size_t lane) {
            uint32x4_t entries = vld1q_dup_u32(at(lane));
            entries = vld1q_lane_u32(at(lane + 1), entries, 1);
            entries = vld1q_lane_u32(at(lane + 2), entries, 2);
            return vreinterpretq_u16_u32(vld1q_lane_u32(at(lane + 3), entries, 3));
        };
        const uint16x8_t first = four(0);
        const uint16x8_t second = four(4);
        lower = words_of(vuzp1q_u16(first, second));
        upper = words_of(vuzp2q_u16(first, second));
    }
};

}  // namespace

}  // namespace orbitsplit::kernels
