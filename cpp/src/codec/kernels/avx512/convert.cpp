#include "codec/kernels/avx512/elements.hpp"
#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

template <class Element>
void to_bf16(const std::byte* in, std::size_t count, std::byte* out) {
    std::size_t i = 0;
    for (; i + lanes <= count; i += lanes)
        BFloat16::store(out + 2 * i, Element::load(in + i * Element::bytes));
    const __mmask16 rest = first_lanes(count - i);
    BFloat16::store(out + 2 * i, rest, Element::load(in + i * Element::bytes, rest));
}

// Finite values stay finite; infinity and NaN are kept.
template <class Element>
__m512 keep_finite(__m512 x) {
    const __m512 size = _mm512_abs_ps(x);
    const __mmask16 is_finite = _mm512_cmp_ps_mask(size, _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(x, is_finite, Element::clamp(x));
}

template <class Element>
void from_bf16(const std::byte* in, std::size_t count, std::byte* out) {
    std::size_t i = 0;
    for (; i + lanes <= count; i += lanes)
        Element::store(out + i * Element::bytes, keep_finite<Element>(BFloat16::load(in + 2 * i)));
    const __mmask16 rest = first_lanes(count - i);
    Element::store(out + i * Element::bytes, rest, keep_finite<Element>(BFloat16::load(in + 2 * i, rest)));
}

}  // namespace

constinit const Convert avx512::convert = {
    {to_bf16<Float32>, to_bf16<Float16>, to_bf16<BFloat16>},
    {from_bf16<Float32>, from_bf16<Float16>, from_bf16<BFloat16>},
};

}  // namespace orbitsplit::kernels
