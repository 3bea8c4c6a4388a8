// Selects kernels: those of the best instruction set of this processor, or of the one that the user requested.
#pragma once

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

// Selected on first use, by ORBITSPLIT_ISA if that is set (std::invalid_argument unless isas() has it), and by
// set_isa().
const Kernels& active();

}  // namespace orbitsplit::kernels
