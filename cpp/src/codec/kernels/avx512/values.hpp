// 64 bfloat16 values: as two vectors, or as one of their exponents and one of their other bits.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace orbitsplit::kernels {

namespace {

// The indices of the even bytes of two vectors.
constexpr struct EvenBytes {
    std::uint8_t position[64] = {};
    constexpr EvenBytes() {
        for (std::size_t i = 0; i < 64; ++i) position[i] = static_cast<std::uint8_t>(2 * i);
    }
} even_bytes;

struct Values {
    __m512i first;
    __m512i second;

    static Values load(const std::byte* in) { return {_mm512_loadu_si512(in), _mm512_loadu_si512(in + 64)}; }
    static Values load(const std::byte* in, __mmask64 active) {
        return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>(active), in),
                _mm512_maskz_loadu_epi16(static_cast<__mmask32>(active >> 32), in + 64)};
    }

    void store(std::byte* out) const {
        _mm512_storeu_si512(out, first);
        _mm512_storeu_si512(out + 64, second);
    }
    void store(std::byte* out, __mmask64 active) const {
        _mm512_mask_storeu_epi16(out, static_cast<__mmask32>(active), first);
        _mm512_mask_storeu_epi16(out + 64, static_cast<__mmask32>(active >> 32), second);
    }
};

struct Split {
    __m512i even = _mm512_loadu_si512(even_bytes.position);
    __m512i odd = _mm512_or_si512(even, _mm512_set1_epi8(1));

    // A value is a sign, eight bits of exponent and seven of mantissa: shifted left by one, its high byte is the
    // exponent.
    __m512i exponents(Values v) const {
        return _mm512_permutex2var_epi8(_mm512_slli_epi16(v.first, 1), odd, _mm512_slli_epi16(v.second, 1));
    }
    __m512i others(Values v) const {
        const __m512i high = _mm512_permutex2var_epi8(v.first, odd, v.second);
        const __m512i low = _mm512_permutex2var_epi8(v.first, even, v.second);
        // low where the selector is 0x7F, high where it is not
        return _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x7F), low, high, 0xCA);
    }
};

// The high byte of a value is the sign and seven bits of the exponent, the low one the last bit and the mantissa.
inline Values merge(__m512i exponents, __m512i others) {
    // Bits of `others` where the selector is 1, of the exponent where it is 0; bits that the shifts carry into other
    // bytes are not selected.
    const __m512i high = _mm512_ternarylogic_epi64(_mm512_set1_epi8(static_cast<char>(0x80)), others,
                                                   _mm512_srli_epi16(exponents, 1), 0xCA);
    const __m512i low =
        _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x7F), others, _mm512_slli_epi16(exponents, 7), 0xCA);
    // Interleaving works within 128-bit lanes: the 64-bit words are moved to where it takes them from.
    const __m512i eights = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512i ordered_low = _mm512_permutexvar_epi64(eights, low);
    const __m512i ordered_high = _mm512_permutexvar_epi64(eights, high);
    return {_mm512_unpacklo_epi8(ordered_low, ordered_high), _mm512_unpackhi_epi8(ordered_low, ordered_high)};
}

}  // namespace

}  // namespace orbitsplit::kernels
