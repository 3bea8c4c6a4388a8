#include "decoder/kernels/kernels.hpp"
#include "support/isa.hpp"

namespace orbitsplit {

const decoder::Kernels& decoder::active() {
    switch (active_isa()) {
#if defined(ORBITSPLIT_ISA_X86)
        case Isa::avx2:
        case Isa::avx512:
            return avx2::decoder_kernels;
#endif
        default:
            return scalar::decoder_kernels;
    }
}

}  // namespace orbitsplit
