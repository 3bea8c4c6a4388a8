#include <immintrin.h>

#include "codec/kernels/avx512/masks.hpp"
#include "codec/kernels/avx512/values.hpp"
#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

void exponents(const std::byte* in, std::size_t count, std::uint8_t* out) {
    const Split of;
    std::size_t i = 0;
    for (; i + 64 <= count; i += 64) _mm512_storeu_si512(out + i, of.exponents(Values::load(in + 2 * i)));
    if (i == count) return;
    const __mmask64 rest = first_lanes(count - i);
    _mm512_mask_storeu_epi8(out + i, rest, of.exponents(Values::load(in + 2 * i, rest)));
}

}  // namespace

constinit const Planes avx512::planes = {exponents};

}  // namespace orbitsplit::kernels
