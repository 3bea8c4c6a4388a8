#include "weights/kernels/dispatch.hpp"

namespace orbitsplit {

const weights::Products& weights::active() {
    switch (active_isa()) {
#if defined(ORBITSPLIT_ISA_X86)
        case Isa::avx2:
        case Isa::avx512:
            return avx2::products;
#endif
        default:
            return scalar::products;
    }
}

}  // namespace orbitsplit
