#include "weights/kernels/dispatch.hpp"

#include "support/isa.hpp"

namespace orbitsplit {

weights::Kernels weights::active() {
    switch (active_isa()) {
#if defined(ORBITSPLIT_ISA_X86)
        case Isa::avx2:
            return {&avx2::conversions, &avx2::products};
        case Isa::avx512:
            return {&avx2::conversions, &avx512::products};
#elif defined(ORBITSPLIT_ISA_ARM)
        case Isa::neon:
            return {&neon::conversions, &neon::products};
#endif
        default:
            return {&scalar::conversions, &scalar::products};
    }
}

}  // namespace orbitsplit
