// The kernels of the instruction set that support/isa.hpp chose.
#pragma once

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

// The kernels of active_isa().
const Kernels& active();

}  // namespace orbitsplit::kernels
