#include "codec/kernels/elements.hpp"
#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

using elements::BFloat16;
using elements::Float16;
using elements::Float32;

template <class Element>
void to_bf16(const std::byte* in, std::size_t count, std::byte* out) {
    for (std::size_t i = 0; i < count; ++i)
        elements::store(out, i, float_bits::bf16_from_single(elements::load_single<Element>(in, i)));
}

template <class Element>
void from_bf16(const std::byte* in, std::size_t count, std::byte* out) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t bits = std::uint32_t{elements::load<std::uint16_t>(in, i)} << 16;
        const auto clamped =
            std::bit_cast<std::uint32_t>(elements::clamp<Element>(std::bit_cast<float>(bits)));
        const bool is_finite = float_bits::is_above(float_bits::infinity, bits & float_bits::magnitude);
        const std::uint32_t kept = float_bits::select(is_finite, clamped, bits);
        elements::store(out, i, Element::from_single(std::bit_cast<float>(kept)));
    }
}

}  // namespace

constinit const Convert scalar::convert = {
    {to_bf16<Float32>, to_bf16<Float16>, to_bf16<BFloat16>},
    {from_bf16<Float32>, from_bf16<Float16>, from_bf16<BFloat16>},
};

}  // namespace orbitsplit::kernels
