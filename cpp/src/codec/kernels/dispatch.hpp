// Which kernels run: those of the best instruction set of this processor, or of the one that was asked for.
#pragma once

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

// Chosen on first use, from ORBITSPLIT_ISA if that is set (std::invalid_argument if it names none of isas()),
// and again by set_isa().
const Kernels& active();

}  // namespace orbitsplit::kernels
