#include "codec/kernels/vector/channels.hpp"

#include <immintrin.h>

namespace orbitsplit::kernels {

namespace {

struct Singles {
    static constexpr std::size_t lanes = 8;
    static constexpr std::size_t panel = 2;
    using Floats = float __attribute__((vector_size(4 * lanes)));
    using Ints = int __attribute__((vector_size(4 * lanes)));

    static __m256i bits(Ints x) { return reinterpret_cast<__m256i>(x); }

    template <std::size_t distance>
    static Floats partner(Floats y) {
        if constexpr (distance == 1)
            return _mm256_permute_ps(y, 0xB1);
        else if constexpr (distance == 2)
            return _mm256_permute_ps(y, 0x4E);
        else
            return _mm256_permute2f128_ps(y, y, 0x01);
    }

    static Ints truncate(Floats x) { return reinterpret_cast<Ints>(_mm256_cvttps_epi32(x)); }
    static Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(bits(x)); }
    static bool is_zero(Ints x) { return _mm256_testz_si256(bits(x), bits(x)) != 0; }
    static unsigned mask_of(Ints x) {
        return static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<Floats>(x)));
    }

    static void store_codes(const Ints (&x)[4], std::int8_t* out) {
        const __m256i halves = _mm256_packs_epi16(_mm256_packs_epi32(bits(x[0]), bits(x[1])),
                                                  _mm256_packs_epi32(bits(x[2]), bits(x[3])));
        // Packing works within 128-bit lanes: this restores the order of the 32-bit words.
        const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(halves, in_order));
    }

    static Ints load_codes(const std::int8_t* in) {
        return reinterpret_cast<Ints>(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(in))));
    }

    static bool has_escape(const std::int8_t* codes) {
        const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
        return _mm256_movemask_epi8(_mm256_cmpeq_epi8(all, _mm256_set1_epi8(escape_code))) != 0;
    }
};

}  // namespace

constinit const Channels avx2::channels = make_channels<Singles>();

}  // namespace orbitsplit::kernels
