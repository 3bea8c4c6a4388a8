#include "codec/kernels/dispatch.hpp"

#include "support/isa.hpp"

namespace orbitsplit {

namespace {

using kernels::Kernels;

// From the slowest to the fastest. A set without its own kernels for a topic uses those of an earlier set.
constexpr Kernels sets[] = {
    {Isa::scalar, &kernels::scalar::convert, &kernels::scalar::groups, &kernels::scalar::select,
     &kernels::scalar::channels, &kernels::scalar::planes, &kernels::scalar::rans,
     &kernels::scalar::checksum},
#if defined(ORBITSPLIT_ISA_X86)
    {Isa::avx2, &kernels::avx2::convert, &kernels::avx2::groups, &kernels::avx2::select,
     &kernels::avx2::channels, &kernels::avx2::planes, &kernels::avx2::rans, &kernels::avx2::checksum},
    {Isa::avx512, &kernels::avx512::convert, &kernels::avx512::groups, &kernels::avx512::select,
     &kernels::avx512::channels, &kernels::avx512::planes, &kernels::avx512::rans,
     &kernels::avx512::checksum},
#elif defined(ORBITSPLIT_ISA_ARM)
    {Isa::neon, &kernels::neon::convert, &kernels::neon::groups, &kernels::neon::select,
     &kernels::neon::channels, &kernels::neon::planes, &kernels::neon::rans, &kernels::neon::checksum},
#endif
};

}  // namespace

const Kernels& kernels::active() {
    const Isa isa = active_isa();
    for (const Kernels& set : sets)
        if (set.isa == isa) return set;
    return sets[0];
}

}  // namespace orbitsplit
