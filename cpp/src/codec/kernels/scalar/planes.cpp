#include "codec/kernels/elements.hpp"
#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels::scalar {

namespace {

void exponents(const std::byte* in, std::size_t count, std::uint8_t* out) {
    for (std::size_t i = 0; i < count; ++i)
        out[i] = static_cast<std::uint8_t>(elements::load<std::uint16_t>(in, i) >> 7);
}

}  // namespace

constinit const Planes planes = {exponents};

}  // namespace orbitsplit::kernels::scalar
