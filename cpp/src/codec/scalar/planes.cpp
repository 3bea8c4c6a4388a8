#include "codec/elements.hpp"
#include "codec/kernels.hpp"

namespace orbitsplit::kernels::scalar {

namespace {

void split(const std::byte* in, std::size_t count, std::uint8_t* exponents, std::uint8_t* others) {
    for (std::size_t i = 0; i < count; ++i) {
        const unsigned bits = elements::load<std::uint16_t>(in, i);
        exponents[i] = static_cast<std::uint8_t>(bits >> 7);
        others[i] = static_cast<std::uint8_t>((bits >> 8 & 0x80) | (bits & 0x7F));
    }
}

void merge(const std::uint8_t* exponents, const std::uint8_t* others, std::size_t count, std::byte* out) {
    for (std::size_t i = 0; i < count; ++i) {
        const unsigned bits = exponents[i] << 7U | (others[i] & 0x80U) << 8U | (others[i] & 0x7FU);
        elements::store(out, i, static_cast<std::uint16_t>(bits));
    }
}

}  // namespace

constinit const Planes planes = {split, merge};

}  // namespace orbitsplit::kernels::scalar
