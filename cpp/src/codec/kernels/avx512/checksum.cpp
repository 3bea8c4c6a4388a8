// CRC-32C by folding (Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", Intel 2009), with
// four products in each instruction.
#include <immintrin.h>

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

// x^n modulo the polynomial, its 32 coefficients from the highest (bit 0) to the lowest, shifted left by one because
// the product of two such bit-reflected numbers is shifted right by one.
constexpr long long power(std::size_t n) {
    std::uint32_t value = 0x80000000;
    for (; n > 0; --n) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82F63B78 : 0);
    return static_cast<long long>(std::uint64_t{value} << 1);
}

// The factors that fold the two halves of 128 bits over a distance in bits.
struct Factors {
    long long low;
    long long high;
    constexpr explicit Factors(std::size_t distance)
        : low(power(distance + 32)), high(power(distance - 32)) {}
};

constexpr Factors over_four_registers(4 * 512);
constexpr Factors over_register(512);
constexpr Factors over_three_lanes(384);
constexpr Factors over_two_lanes(256);
constexpr Factors over_lane(128);

__m512i everywhere(Factors factors) {
    return _mm512_broadcast_i32x4(_mm_set_epi64x(factors.high, factors.low));
}

// `sum` folded over the distance, plus what is there.
__m512i fold(__m512i sum, __m512i factors, __m512i there) {
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum, factors, 0x00),
                                     _mm512_clmulepi64_epi128(sum, factors, 0x11), there, 0x96);
}

__m512i load(const std::byte* bytes) { return _mm512_loadu_si512(bytes); }

std::uint64_t load_word(const std::byte* bytes) {
    std::uint64_t word;
    __builtin_memcpy(&word, bytes, sizeof word);
    return word;
}

// Folds four lanes into the last one, and that into 32 bits by the checksum instruction.
std::uint64_t reduce(__m512i sum) {
    const __m512i factors = _mm512_setr_epi64(over_three_lanes.low, over_three_lanes.high, over_two_lanes.low,
                                              over_two_lanes.high, over_lane.low, over_lane.high, 0, 0);
    const __m512i last = _mm512_maskz_mov_epi64(0xC0, sum);
    const __m512i folded = fold(sum, factors, last);
    const __m256i half =
        _mm256_xor_si256(_mm512_castsi512_si256(folded), _mm512_extracti64x4_epi64(folded, 1));
    const __m128i lane = _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const std::uint64_t crc = _mm_crc32_u64(0, static_cast<std::uint64_t>(_mm_cvtsi128_si64(lane)));
    return _mm_crc32_u64(crc, static_cast<std::uint64_t>(_mm_extract_epi64(lane, 1)));
}

std::uint64_t update_by_registers(std::uint64_t crc, const std::byte*& bytes, std::size_t& count) {
    const __m512i first = _mm512_zextsi128_si512(_mm_cvtsi64_si128(static_cast<long long>(crc)));
    __m512i a = _mm512_xor_si512(load(bytes), first);
    bytes += 64;
    count -= 64;
    if (count >= 192) {
        __m512i b = load(bytes);
        __m512i c = load(bytes + 64);
        __m512i d = load(bytes + 128);
        const __m512i far = everywhere(over_four_registers);
        for (bytes += 192, count -= 192; count >= 256; bytes += 256, count -= 256) {
            a = fold(a, far, load(bytes));
            b = fold(b, far, load(bytes + 64));
            c = fold(c, far, load(bytes + 128));
            d = fold(d, far, load(bytes + 192));
        }
        const __m512i near = everywhere(over_register);
        a = fold(fold(fold(a, near, b), near, c), near, d);
    }
    const __m512i near = everywhere(over_register);
    for (; count >= 64; bytes += 64, count -= 64) a = fold(a, near, load(bytes));
    return reduce(a);
}

std::uint32_t update(std::uint32_t before, const std::byte* bytes, std::size_t count) {
    std::uint64_t crc = before;
    // For fewer bytes the checksum instruction alone is faster.
    if (count >= 256) crc = update_by_registers(crc, bytes, count);
    for (; count >= 8; bytes += 8, count -= 8) crc = _mm_crc32_u64(crc, load_word(bytes));
    auto last = static_cast<std::uint32_t>(crc);
    for (; count > 0; ++bytes, --count) last = _mm_crc32_u8(last, static_cast<unsigned char>(*bytes));
    return last;
}

}  // namespace

constinit const Checksum avx512::checksum = {update};

}  // namespace orbitsplit::kernels
