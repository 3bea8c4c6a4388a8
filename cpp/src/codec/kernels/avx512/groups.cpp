#include "codec/kernels/vector/groups.hpp"

#include "codec/kernels/avx512/elements.hpp"

namespace orbitsplit::kernels {

namespace {

// Elements whose codes fill a register.
constexpr std::size_t block = 64;

__m512i magnitude(__m512 x) { return _mm512_castps_si512(_mm512_abs_ps(x)); }

// The bits of the largest magnitude, which compare like the numbers, with infinity and NaN above all others.
template <class Element>
std::uint32_t largest_bits(const std::byte* in, std::size_t count) {
    __m512i largest = _mm512_setzero_si512();
    std::size_t i = 0;
    for (; i + lanes <= count; i += lanes)
        largest = _mm512_max_epi32(largest, magnitude(Element::load(in + i * Element::bytes)));
    const __mmask16 rest = first_lanes(count - i);
    largest = _mm512_max_epi32(largest, magnitude(Element::load(in + i * Element::bytes, rest)));
    return static_cast<std::uint32_t>(_mm512_reduce_max_epi32(largest));
}

__m512i code(__m512 x, __m512 inverse) { return _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)); }

// Four registers of 32-bit integers to one of bytes, in order.
__m512i narrow(__m512i a, __m512i b, __m512i c, __m512i d) {
    // Packing works within 128-bit lanes: this restores the order of the 32-bit words.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    return _mm512_permutexvar_epi32(order, bytes);
}

// Stores the first `count` codes of a block.
template <int bits>
void store_codes(std::byte* out, __m512i codes, std::size_t count) {
    const __mmask64 given = count == block ? ~0ULL : (1ULL << count) - 1;
    if constexpr (bits == 8) {
        _mm512_mask_storeu_epi8(out, given, codes);
    } else {
        // Adds 8 to four bits, zero where there is no code; the even code of a pair is the low half.
        const __m512i low = _mm512_and_si512(codes, _mm512_set1_epi8(0x0F));
        const __m512i halves = _mm512_maskz_mov_epi8(given, _mm512_xor_si512(low, _mm512_set1_epi8(0x08)));
        const __m256i pairs = _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(halves, _mm512_set1_epi16(0x1001)));
        _mm256_mask_storeu_epi8(out, static_cast<__mmask32>((1ULL << ((count + 1) / 2)) - 1), pairs);
    }
}

template <class Element, int bits>
void store_group(const std::byte* in, std::size_t count, __m512 inverse, std::byte* codes) {
    std::size_t i = 0;
    for (; i + block <= count; i += block) {
        const std::byte* here = in + i * Element::bytes;
        const auto at = [&](std::size_t k) {
            return code(Element::load(here + k * lanes * Element::bytes), inverse);
        };
        store_codes<bits>(codes + i * bits / 8, narrow(at(0), at(1), at(2), at(3)), block);
    }
    if (i == count) return;
    const auto at = [&](std::size_t k) {
        const std::size_t start = i + k * lanes;
        const __mmask16 mask =
            start < count ? (count - start < lanes ? first_lanes(count - start) : 0xFFFF) : 0;
        return code(Element::load(in + start * Element::bytes, mask), inverse);
    };
    store_codes<bits>(codes + i * bits / 8, narrow(at(0), at(1), at(2), at(3)), count - i);
}

// A group of exactly one block is loaded once and stays in registers for the maximum and the quantisation.
template <class Element, int bits>
bool quantise_block(const std::byte* in, std::byte* scale, std::byte* codes) {
    const __m512 a = Element::load(in);
    const __m512 b = Element::load(in + lanes * Element::bytes);
    const __m512 c = Element::load(in + 2 * lanes * Element::bytes);
    const __m512 d = Element::load(in + 3 * lanes * Element::bytes);
    const auto largest = static_cast<std::uint32_t>(_mm512_reduce_max_epi32(_mm512_max_epi32(
        _mm512_max_epi32(magnitude(a), magnitude(b)), _mm512_max_epi32(magnitude(c), magnitude(d)))));
    const __m512 inverse = _mm512_set1_ps(write_scale(largest, top_code<bits>, scale));
    store_codes<bits>(codes, narrow(code(a, inverse), code(b, inverse), code(c, inverse), code(d, inverse)),
                      block);
    return largest < infinity_bits;
}

template <int bits>
struct Codes;

// Sixteen codes of int8 to numbers.
template <>
struct Codes<8> {
    __m512 scale;

    explicit Codes(float one) : scale(_mm512_set1_ps(one)) {}
    __m512 widen(__m128i codes) const {
        return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale);
    }
    __m512 load(const std::byte* codes) const {
        return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    }
    __m512 load(const std::byte* codes, std::size_t count) const {
        return widen(_mm_maskz_loadu_epi8(first_lanes(count), codes));
    }
};

// Sixteen codes of int4 to numbers: each half of a byte indexes a register of values.
template <>
struct Codes<4> {
    __m512 values;

    explicit Codes(float one)
        : values(_mm512_mul_ps(_mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7),
                               _mm512_set1_ps(one))) {}
    __m512 widen(__m512i codes) const {
        const __m512i shifts = _mm512_setr_epi64(0x400000000, 0xC00000008, 0x1400000010, 0x1C00000018,
                                                 0x2400000020, 0x2C00000028, 0x3400000030, 0x3C00000038);
        return _mm512_permutexvar_ps(_mm512_multishift_epi64_epi8(shifts, codes), values);
    }
    __m512 load(const std::byte* codes) const {
        long long packed;
        __builtin_memcpy(&packed, codes, sizeof packed);
        return widen(_mm512_set1_epi64(packed));
    }
    __m512 load(const std::byte* codes, std::size_t count) const {
        const __m128i packed = _mm_maskz_loadu_epi8(first_lanes((count + 1) / 2), codes);
        return widen(_mm512_broadcastq_epi64(packed));
    }
};

struct Set {
    template <class Element, int bits>
    static bool quantise_group(const std::byte* in, std::size_t count, std::byte* scale, std::byte* codes) {
        if (count == block) return quantise_block<Element, bits>(in, scale, codes);
        const std::uint32_t largest = largest_bits<Element>(in, count);
        if (largest >= infinity_bits) return false;
        const float inverse = write_scale(largest, top_code<bits>, scale);
        store_group<Element, bits>(in, count, _mm512_set1_ps(inverse), codes);
        return true;
    }

    template <class Element, int bits>
    static void dequantise_group(const std::byte* codes, std::size_t count, float scale, std::byte* out) {
        const Codes<bits> decode(scale);
        std::size_t i = 0;
        for (; i + lanes <= count; i += lanes)
            Element::store(out + i * Element::bytes, Element::clamp(decode.load(codes + i * bits / 8)));
        if (i < count)
            Element::store(out + i * Element::bytes, first_lanes(count - i),
                           Element::clamp(decode.load(codes + i * bits / 8, count - i)));
    }
};

}  // namespace

constinit const Groups avx512::groups = make_groups<Set, Float32, Float16, BFloat16>();

}  // namespace orbitsplit::kernels
