// Eight lanes of 16 bits, of which some bytes are chosen: what the kernels of the stream coder and of selection move
// in memory. All in an anonymous namespace, so that each file has its own copy.
#pragma once

#include <cstddef>
#include <cstdint>

namespace orbitsplit::kernels {

namespace {

constexpr std::size_t octet = 8;
constexpr std::size_t octet_masks = 256;

// Arithmetic of these wraps around, on every instruction set the same.
using Words = std::uint16_t __attribute__((vector_size(2 * octet)));
using SignedWords = std::int16_t __attribute__((vector_size(2 * octet)));

// Byte permutations by mask of lanes; 0x80 stands for a zero.
constexpr struct OctetControls {
    // Eight bytes in memory to the words of the mask, in order.
    alignas(64) std::uint8_t expand[octet_masks][2 * octet] = {};
    // The low bytes of the words of the mask, in order, to the last of eight bytes.
    alignas(64) std::uint8_t compress[octet_masks][octet] = {};
    // Words in memory to the words of the mask, in order; the lanes of the mask, in order.
    alignas(64) std::uint8_t expand_words[octet_masks][2 * octet] = {};
    alignas(64) std::uint8_t lanes[octet_masks][octet] = {};
    std::uint8_t count[octet_masks] = {};

    constexpr OctetControls() {
        for (unsigned mask = 0; mask < octet_masks; ++mask) {
            for (unsigned lane = 0; lane < octet; ++lane) {
                const bool is_chosen = (mask >> lane & 1U) != 0;
                expand[mask][2 * lane] = is_chosen ? count[mask] : 0x80;
                expand[mask][2 * lane + 1] = 0x80;
                expand_words[mask][2 * lane] = is_chosen ? 2 * count[mask] : 0x80;
                expand_words[mask][2 * lane + 1] = is_chosen ? 2 * count[mask] + 1 : 0x80;
                if (is_chosen) lanes[mask][count[mask]] = static_cast<std::uint8_t>(lane);
                count[mask] = static_cast<std::uint8_t>(count[mask] + (is_chosen ? 1 : 0));
            }
            unsigned at = octet - count[mask];
            for (unsigned lane = 0; lane < octet; ++lane)
                if ((mask >> lane & 1U) != 0) compress[mask][at++] = static_cast<std::uint8_t>(2 * lane);
        }
    }
} octet_controls;

inline void load(const std::uint16_t* from, Words& to) { __builtin_memcpy(&to, from, sizeof to); }
inline void store(const Words& from, std::uint16_t* to) { __builtin_memcpy(to, &from, sizeof from); }

}  // namespace

}  // namespace orbitsplit::kernels
