#include <immintrin.h>

#include "codec/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

constexpr std::size_t lanes = 64;

__mmask64 first_lanes(std::size_t count) { return _bzhi_u64(~0ULL, static_cast<unsigned>(count)); }

// Positions 0, 2, 4 ... of the bytes of two vectors.
constexpr struct EvenBytes {
    std::uint8_t position[lanes] = {};
    constexpr EvenBytes() {
        for (std::size_t i = 0; i < lanes; ++i) position[i] = static_cast<std::uint8_t>(2 * i);
    }
} even_bytes;

struct Split {
    __m512i even = _mm512_loadu_si512(even_bytes.position);
    __m512i odd = _mm512_or_si512(even, _mm512_set1_epi8(1));

    // A value is sign, eight bits of exponent, seven of mantissa: doubled, its high byte is the exponent.
    __m512i exponents(__m512i a, __m512i b) const {
        return _mm512_permutex2var_epi8(_mm512_slli_epi16(a, 1), odd, _mm512_slli_epi16(b, 1));
    }
    __m512i others(__m512i a, __m512i b) const {
        const __m512i high = _mm512_permutex2var_epi8(a, odd, b);
        const __m512i low = _mm512_permutex2var_epi8(a, even, b);
        // low where the selector is 0x7F, high where it is not
        return _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x7F), low, high, 0xCA);
    }
};

void split(const std::byte* in, std::size_t count, std::uint8_t* exponents, std::uint8_t* others) {
    const Split of;
    std::size_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        const __m512i a = _mm512_loadu_si512(in + 2 * i);
        const __m512i b = _mm512_loadu_si512(in + 2 * i + 64);
        _mm512_storeu_si512(exponents + i, of.exponents(a, b));
        _mm512_storeu_si512(others + i, of.others(a, b));
    }
    if (i == count) return;
    const std::size_t bytes = 2 * (count - i);
    const __m512i a = _mm512_maskz_loadu_epi8(first_lanes(bytes < 64 ? bytes : 64), in + 2 * i);
    const __m512i b = _mm512_maskz_loadu_epi8(first_lanes(bytes < 64 ? 0 : bytes - 64), in + 2 * i + 64);
    _mm512_mask_storeu_epi8(exponents + i, first_lanes(count - i), of.exponents(a, b));
    _mm512_mask_storeu_epi8(others + i, first_lanes(count - i), of.others(a, b));
}

__m512i merge(__m256i exponents, __m256i others) {
    const __m512i exponent = _mm512_slli_epi16(_mm512_cvtepu8_epi16(exponents), 7);
    const __m512i other = _mm512_cvtepu8_epi16(others);
    const __m512i sign = _mm512_slli_epi16(other, 8);
    // mantissa where the selector is 0x007F, sign where it is not; then the middle bits from the exponent
    const __m512i ends = _mm512_ternarylogic_epi64(_mm512_set1_epi16(0x007F), other, sign, 0xCA);
    return _mm512_ternarylogic_epi64(_mm512_set1_epi16(0x7F80), exponent, ends, 0xCA);
}

void merge(const std::uint8_t* exponents, const std::uint8_t* others, std::size_t count, std::byte* out) {
    constexpr std::size_t half = lanes / 2;
    std::size_t i = 0;
    for (; i + half <= count; i += half)
        _mm512_storeu_si512(out + 2 * i,
                            merge(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(exponents + i)),
                                  _mm256_loadu_si256(reinterpret_cast<const __m256i*>(others + i))));
    const auto rest = static_cast<__mmask32>(first_lanes(count - i));
    if (rest == 0) return;
    _mm512_mask_storeu_epi16(
        out + 2 * i, rest,
        merge(_mm256_maskz_loadu_epi8(rest, exponents + i), _mm256_maskz_loadu_epi8(rest, others + i)));
}

}  // namespace

constinit const Planes avx512::planes = {split, merge};

}  // namespace orbitsplit::kernels
