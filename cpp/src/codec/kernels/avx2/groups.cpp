#include "codec/kernels/vector/groups.hpp"

#include "codec/kernels/avx2/elements.hpp"

namespace orbitsplit::kernels {

namespace {

__m256i largest_of(__m256i a, __m256 b) { return _mm256_max_epi32(a, _mm256_castps_si256(magnitude(b))); }

struct Blocks {
    static constexpr std::size_t lanes = 8;
    static constexpr std::size_t block = 32;

    template <class Element>
    static std::uint32_t largest_bits(const std::byte* in) {
        __m256i largest = _mm256_setzero_si256();
        for (std::size_t k = 0; k < block; k += lanes)
            largest = largest_of(largest, Element::load(in + k * Element::bytes));
        __m128i half = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
        half = _mm_max_epi32(half, _mm_unpackhi_epi64(half, half));
        half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 1));
        return static_cast<std::uint32_t>(_mm_cvtsi128_si32(half));
    }

    template <class Element, int bits>
    static void quantise_block(const std::byte* in, float inverse, std::byte* out) {
        const __m256 factor = _mm256_set1_ps(inverse);
        const auto code = [&](std::size_t k) {
            return _mm256_cvtps_epi32(_mm256_mul_ps(Element::load(in + k * lanes * Element::bytes), factor));
        };
        const __m256i halves =
            _mm256_packs_epi16(_mm256_packs_epi32(code(0), code(1)), _mm256_packs_epi32(code(2), code(3)));
        // Packing works within 128-bit lanes: this restores the order of the 32-bit words.
        const __m256i codes = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        if constexpr (bits == 8) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), codes);
        } else {
            // Adds 8 to four bits; the even code of a pair is the low half.
            const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(0x0F));
            const __m256i shifted = _mm256_xor_si256(low, _mm256_set1_epi8(0x08));
            const __m256i pairs = _mm256_maddubs_epi16(shifted, _mm256_set1_epi16(0x1001));
            const __m128i bytes =
                _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
        }
    }

    template <class Element, int bits>
    static void dequantise_block(const std::byte* in, float scale, std::byte* out) {
        alignas(32) std::byte codes[block];
        if constexpr (bits == 4) {
            const __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
            const __m256i halves =
                _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)), _mm256_set1_epi8(0x0F));
            _mm256_store_si256(reinterpret_cast<__m256i*>(codes),
                               _mm256_sub_epi8(halves, _mm256_set1_epi8(8)));
            in = codes;
        }
        const __m256 factor = _mm256_set1_ps(scale);
        for (std::size_t k = 0; k < block; k += lanes) {
            const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(in + k));
            const __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), factor);
            Element::store(out + k * Element::bytes, Element::clamp(x));
        }
    }
};

}  // namespace

constinit const Groups avx2::groups = make_groups<GroupsOfBlocks<Blocks>, Float32, Float16, BFloat16>();

}  // namespace orbitsplit::kernels
