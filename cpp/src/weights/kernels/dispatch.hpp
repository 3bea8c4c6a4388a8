// The kernels of the instruction set that support/isa.hpp chose.
#pragma once

#include "weights/kernels/kernels.hpp"

namespace orbitsplit::weights {

// The kernels of active_isa().
const Products& active();

}  // namespace orbitsplit::weights
